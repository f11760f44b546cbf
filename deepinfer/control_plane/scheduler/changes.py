"""From what the leader wants to the keys that must be written. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from deepinfer.fleet import keys
from deepinfer.fleet.conditions import Conditions
from deepinfer.fleet.resources import Absence, Placement, Refusal
from deepinfer.fleet.rollout import Rollout
from deepinfer.fleet.snapshot import Snapshot

Written = Placement | Refusal | Rollout | Conditions | Absence
"""What only the leader writes."""


@dataclass(frozen=True, slots=True)
class Change:
    """One key's new value (None deletes), and the key that the decision rests on: if that moved, decide again."""

    key: str
    value: bytes | None
    rests_on: str


def changes_between(fleet: Snapshot, wanted: Snapshot) -> tuple[Change, ...]:
    """What differs; deletions first, for a later write may give out what they free. Unreadable keys are left alone."""
    now, then = dict(_keyed(fleet)), dict(_keyed(wanted))
    deletions = (Change(key, None, _premise_of_deletion(now[key])) for key in now if key not in then)
    puts = (
        Change(key, record.to_json(), _premise(record))
        for key, record in then.items()
        if now.get(key) is not record and now.get(key) != record
    )
    return tuple(chain(deletions, puts))


def _keyed(fleet: Snapshot) -> Iterator[tuple[str, Written]]:
    """Rollouts before the placements that follow from them."""
    yield from ((keys.rollout(rollout.deployment), rollout) for rollout in fleet.rollouts)
    yield from ((keys.placement(placement.node, placement.id), placement) for placement in fleet.placements)
    yield from ((keys.refusal(refusal.deployment), refusal) for refusal in fleet.refusals)
    yield from ((keys.absence(absence.node), absence) for absence in fleet.absences)
    yield from ((keys.conditions(conditions.deployment), conditions) for conditions in fleet.conditions)


def _premise(record: Written) -> str:
    return keys.node(record.node) if isinstance(record, Absence) else keys.deployment(record.deployment)


def _premise_of_deletion(record: Written) -> str:
    """A placement is forgotten because its agent has no status of it."""
    return keys.status(record.node, record.id) if isinstance(record, Placement) else _premise(record)


def keys_of(changed: Sequence[str]) -> str:
    """For a log."""
    names = [key.removeprefix(keys.FLEET) for key in changed]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
