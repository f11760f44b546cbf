"""When a client leaves a slow member of etcd, and when it does not."""

from __future__ import annotations

import itertools

import pytest

from deepinfer.etcd.pace import CALLS, REMEMBERED_SECONDS, SLOW_SECONDS, Pace, Paces, better_member

FAST, SLOW = SLOW_SECONDS / 10, SLOW_SECONDS * 4


@pytest.mark.parametrize(
    ("paces", "goes_to"),
    [
        ([None, None, None], None),
        ([FAST, None, None], None),
        ([SLOW, None, None], 1),
        ([SLOW, SLOW, None], 2),
        ([SLOW, SLOW, FAST], 2),
        ([SLOW, SLOW, SLOW], None),
        ([SLOW, SLOW * 0.7, SLOW * 0.7], None),
        ([SLOW, SLOW * 0.5, SLOW * 0.4], 2),
        ([SLOW], None),
    ],
)
def test_a_slow_member_is_left_for_one_that_is_unknown_or_twice_as_fast(
    paces: list[float | None], goes_to: int | None
) -> None:
    assert better_member(0, [None if pace is None else Pace(pace, at=100.0) for pace in paces], now=101.0) == goes_to


def test_what_was_slow_long_ago_is_tried_again() -> None:
    paces = [Pace(SLOW, at=1000.0), Pace(SLOW, at=1000.0 - REMEMBERED_SECONDS)]
    assert better_member(0, paces, now=1000.0) == 1


def calls(paces: Paces, seconds: dict[int, float], count: int) -> list[int]:
    """The members used by `count` calls, one after another, where members take `seconds`."""
    member, now, used = 0, 0.0, []
    for _ in range(count):
        used.append(member)
        better = paces.better_than(member, now, now + seconds[member])
        now += seconds[member]
        member = member if better is None else better
    return used


def test_one_slow_call_or_two_move_nobody() -> None:
    paces = Paces(3)
    now = 0.0
    for seconds in (FAST, SLOW, FAST, FAST, 3.0) * 5:
        assert paces.better_than(0, now, now + seconds) is None
        now += seconds


def test_calls_that_all_wait_for_one_hiccup_are_one_observation() -> None:
    paces = Paces(3)
    assert [paces.better_than(0, 0.01 * n, 3.0 + 0.01 * n) for n in range(50)] == [None] * 50


def test_a_slow_member_is_left_soon_and_not_returned_to() -> None:
    assert calls(Paces(3), {0: SLOW, 1: FAST, 2: FAST}, 200) == [0] * CALLS + [1] * (200 - CALLS)


def test_equally_slow_members_are_each_tried_once_and_never_taken_in_turns() -> None:
    used = calls(Paces(3), {0: SLOW, 1: SLOW * 1.1, 2: SLOW * 0.9}, int(REMEMBERED_SECONDS / SLOW))
    changes = sum(one != other for one, other in itertools.pairwise(used))
    assert changes == 2


def test_once_all_is_well_again_nothing_moves() -> None:
    paces = Paces(2)
    assert calls(paces, {0: SLOW, 1: SLOW}, 20)[-1] == 1
    assert set(calls(paces, {0: FAST, 1: FAST}, 1000)) == {0}
