"""From a plan to the keys that must be written. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain

from deepinfer.control_plane.scheduler.plan import Plan
from deepinfer.fleet import keys
from deepinfer.fleet.resources import Placement, Refusal
from deepinfer.fleet.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class Change:
    """One key's new value (None deletes), and the key that the decision rests on: if that moved, decide again."""

    key: str
    value: bytes | None
    rests_on: str


def changes_between(fleet: Snapshot, wanted: Plan) -> tuple[Change, ...]:
    """What differs; deletions first, for a later write may give out what they free. Unreadable keys are left alone."""
    now, then = _records(fleet.placements, fleet.refusals), _records(wanted.placements, wanted.refusals)
    deletions = (Change(key, None, _premise_of_deletion(now[key])) for key in now if key not in then)
    puts = (
        Change(key, record.to_json(), keys.deployment(record.deployment))
        for key, record in then.items()
        if now.get(key) != record
    )
    return tuple(chain(deletions, puts))


def _records(placements: tuple[Placement, ...], refusals: tuple[Refusal, ...]) -> Mapping[str, Placement | Refusal]:
    return dict(_keyed(placements, refusals))


def _keyed(
    placements: tuple[Placement, ...], refusals: tuple[Refusal, ...]
) -> Iterator[tuple[str, Placement | Refusal]]:
    yield from ((keys.placement(placement.node, placement.id), placement) for placement in placements)
    yield from ((keys.refusal(refusal.deployment), refusal) for refusal in refusals)


def _premise_of_deletion(record: Placement | Refusal) -> str:
    """A placement is forgotten because its agent has no status of it."""
    if isinstance(record, Placement):
        return keys.status(record.node, record.id)
    return keys.deployment(record.deployment)
