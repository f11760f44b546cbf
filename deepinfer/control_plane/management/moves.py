"""Requests to replace replicas where there is a better place: the only writer of their keys."""

from __future__ import annotations

from collections.abc import Sequence

from deepinfer.control_plane.management.retrying import retrying
from deepinfer.fleet import keys
from deepinfer.fleet.mirror import Mirror
from deepinfer.fleet.resources import Move
from deepinfer.fleet.snapshot import Snapshot


def with_moves(fleet: Snapshot, moves: Sequence[Move]) -> Snapshot:
    """The fleet once they are asked for; those that are done or pointless are gone."""
    placed = {(placement.id, placement.epoch) for placement in fleet.placements}
    asked = {move.placement: move for move in fleet.moves if (move.placement, move.epoch) in placed}
    asked |= {move.placement: move for move in moves}
    return fleet.but(moves=tuple(asked[name] for name in sorted(asked)))


async def asked_for(store: Mirror, moves: Sequence[Move]) -> None:
    """Written; the scheduler carries them out. Raises `StoreUnavailable`."""

    async def once() -> None:
        reading = await store.read(keys.MOVES)
        # What another control plane has just asked for is not to be taken for pointless.
        await store.reaches(max((entry.mod_revision for entry in reading.entries.values()), default=0))
        wanted = with_moves(await store.latest(), moves)
        records = {keys.move(move.placement): move.to_json() for move in wanted.moves}
        changes: dict[str, bytes | None] = {
            key: records.get(key)
            for key in sorted({*reading.entries, *records})
            if reading.values.get(key) != records.get(key)
        }
        await store.commit(changes, if_unchanged=reading)

    await retrying(once)
