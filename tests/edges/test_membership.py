"""A node remembers its fleet over restarts, and obeys no store that does not follow from it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from deepinfer.agent.membership import Membership
from deepinfer.fleet.errors import AnotherFleet
from deepinfer.fleet.identity import FleetIdentity

OURS, THEIRS = "aaaaaaaaaaaaaaaa", "bbbbbbbbbbbbbbbb"


def told(fleet: str, *succeeds: str, schema: int = 1) -> bytes:
    return FleetIdentity(id=fleet, schema=schema, succeeds=succeeds).to_json()


def test_it_joins_the_first_fleet_it_finds_and_knows_it_after_a_restart(tmp_path: Path) -> None:
    node = Membership(tmp_path)
    node.check(None)  # no control plane has been here yet
    assert node.fleet == ""
    node.check(told(OURS))
    assert (node.fleet, Membership(tmp_path).fleet) == (OURS, OURS)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (None, "wiped or exchanged"),
        (told(THEIRS), f"fleet {THEIRS}, which does not succeed fleet {OURS}"),
        (told(OURS, schema=2), "upgrade this deepinfer"),
        (b"{}", "cannot be read by this version"),
        (b"\xff", "cannot be read by this version"),
    ],
)
def test_another_store_is_not_obeyed_and_changes_no_note(tmp_path: Path, found: bytes | None, words: str) -> None:
    Membership(tmp_path).check(told(OURS))
    node = Membership(tmp_path)
    with pytest.raises(AnotherFleet, match=words):
        node.check(found)
    assert (node.fleet, Membership(tmp_path).fleet) == (OURS, OURS)
    assert words in node.trouble
    node.check(told(OURS))
    assert node.trouble == ""


def test_a_confirmed_successor_is_joined(tmp_path: Path) -> None:
    node = Membership(tmp_path)
    node.check(told(OURS))
    node.check(told(THEIRS, "other", OURS))
    assert (node.fleet, Membership(tmp_path).fleet) == (THEIRS, THEIRS)
    with pytest.raises(AnotherFleet):
        node.check(told(OURS))


async def test_every_change_is_told(tmp_path: Path) -> None:
    node = Membership(tmp_path)
    for found in (told(OURS), None, told(OURS)):
        changed = node.changed
        try:
            node.check(found)
        except AnotherFleet:
            assert found is None
        async with asyncio.timeout(1):
            await changed.wait()
    changed = node.changed
    node.check(told(OURS))
    assert not changed.is_set()


def test_a_damaged_note_is_told_and_costs_nothing_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "fleet").write_bytes(b"\x00\xff")
    node = Membership(tmp_path)
    assert "damaged" in caplog.text
    node.check(told(THEIRS))
    assert Membership(tmp_path).fleet == THEIRS
