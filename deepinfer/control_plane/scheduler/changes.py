"""From what the leader wants to the keys that must be written. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from deepinfer.fleet import keys
from deepinfer.fleet.conditions import Conditions
from deepinfer.fleet.pipeline import Layout, deployment_served
from deepinfer.fleet.resources import Absence, Placement, Refusal
from deepinfer.fleet.rollout import Rollout
from deepinfer.fleet.snapshot import Snapshot, only_in

Written = Placement | Refusal | Rollout | Conditions | Absence | Layout
"""What only the leader writes."""


@dataclass(frozen=True, slots=True)
class Change:
    """One key's new value (None deletes), and the key that the decision rests on: if that moved, decide again."""

    key: str
    value: bytes | None
    rests_on: str


def changes_between(fleet: Snapshot, wanted: Snapshot) -> tuple[Change, ...]:
    """What differs; deletions first, for a later write may give out what they free. Unreadable keys are left alone."""
    now = {_key(record): record for record in only_in(_written(fleet), _written(wanted))}
    then = {_key(record): record for record in only_in(_written(wanted), _written(fleet))}
    deletions = (Change(key, None, _premise_of_deletion(now[key])) for key in now if key not in then)
    puts = (Change(key, record.to_json(), _premise(record)) for key, record in then.items() if now.get(key) != record)
    return tuple(chain(deletions, puts))


def _written(fleet: Snapshot) -> tuple[Written, ...]:
    """Rollouts before the placements that follow from them."""
    return (*fleet.rollouts, *fleet.placements, *fleet.layouts, *fleet.refusals, *fleet.absences, *fleet.conditions)


def _key(record: Written) -> str:
    match record:
        case Rollout():
            return keys.rollout(record.deployment)
        case Placement():
            return keys.placement(record.node, record.id)
        case Layout():
            return keys.layout(record.id)
        case Refusal():
            return keys.refusal(record.deployment)
        case Absence():
            return keys.absence(record.node)
        case Conditions():
            return keys.conditions(record.deployment)


def _premise(record: Written) -> str:
    if isinstance(record, Layout):
        return keys.placement(record.node, record.id)
    return (
        keys.node(record.node) if isinstance(record, Absence) else keys.deployment(deployment_served(record.deployment))
    )


def _premise_of_deletion(record: Written) -> str:
    """A placement is forgotten because its agent has no status of it."""
    return keys.status(record.node, record.id) if isinstance(record, Placement) else _premise(record)


def keys_of(changed: Sequence[str]) -> str:
    """For a log."""
    names = [key.removeprefix(keys.FLEET) for key in changed]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
