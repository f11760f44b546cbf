"""When a node is short of something, and what it says."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepinfer.agent.pressure import Disk, Limits, Memory, pressure

LIMITS = Limits(memory_share=0.05, disk_share=0.05, disk_bytes=1 << 30)
GIB = 1 << 30
ROOMY = Memory("memory", 12 * GIB, 24 * GIB)


def told(*what: Memory | Disk, before: dict[str, str] | None = None, limits: Limits = LIMITS) -> list[str]:
    memories = [each for each in what if isinstance(each, Memory)]
    disks = [each for each in what if isinstance(each, Disk)]
    return list(pressure(memories, disks, limits, before or {}).values())


@pytest.mark.parametrize(
    ("what", "sentences"),
    [
        (ROOMY, []),
        (Memory("memory", int(0.48 * GIB), 24 * GIB), ["memory: 2 % of 24.0 GiB left"]),
        (Disk("/a", 11 * GIB, 252 * GIB), []),  # enough, though less than its share
        (Disk("/a", GIB // 2, 252 * GIB), ["disk: 512.0 MiB of 252.0 GiB left at /a"]),
        (Disk("/a", 1 << 20, 16 << 20), []),  # its share, though less than what is always enough
        (Disk("/a", 1 << 19, 16 << 20), ["disk: 0.5 MiB of 16.0 MiB left at /a"]),
        (Disk("/a", GIB, 2 * GIB, 40, 1_000), ["disk: room for 40 of 1,000 files left at /a"]),
        (Disk("/a", GIB, 2 * GIB, 20_000, 9_000_000), []),
        (Disk("/a", GIB, 2 * GIB, 0, 0), []),  # a file system that does not count them
        (Disk("/a", 0, 0, trouble="can only be read"), ["disk: /a can only be read"]),
    ],
)
def test_what_is_short_is_told_with_what_is_left(what: Memory | Disk, sentences: list[str]) -> None:
    assert told(what) == sentences


def test_a_limit_of_nothing_is_never_reached() -> None:
    nothing = Limits(0, 0, 0)
    assert told(Memory("memory", 0, GIB), Disk("/a", 0, GIB, 0, 100), limits=nothing) == []


def test_pressure_ends_well_above_where_it_began_and_is_told_as_at_first() -> None:
    memory = Memory("memory", 40, 1000)
    first = dict(pressure([memory], [], LIMITS, {}))
    assert told(replace(memory, free=74), before=first) == list(first.values()) == ["memory: 4 % of 0.0 MiB left"]
    assert told(replace(memory, free=75), before=first) == []
    assert told(replace(memory, free=74)) == []


def test_each_thing_has_its_own_edge() -> None:
    first = dict(pressure([], [Disk("/a", 0, GIB)], LIMITS, {}))
    between = int(0.06 * GIB)
    assert len(told(Disk("/a", between, GIB), Disk("/b", between, GIB), before=first)) == 1


@given(st.lists(st.integers(0, 100), max_size=30))
def test_between_the_edges_nothing_changes(shares: list[int]) -> None:
    short: dict[str, str] = {}
    for share in shares:
        again = dict(pressure([Memory("memory", share, 100)], [], LIMITS, short))
        assert bool(again) == (share < 5 or (share < 7.5 and bool(short)))
        short = again
