"""What is new between two snapshots, so that one change in a large fleet costs what one change costs. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from typing import TypeVar

from deepinfer.fleet import keys
from deepinfer.fleet.pipeline import Layout
from deepinfer.fleet.resources import Placement, ReplicaStatus
from deepinfer.fleet.snapshot import Snapshot, only_in

Told = TypeVar("Told", Placement, ReplicaStatus, Layout)


def changed_placements(before: Snapshot, after: Snapshot) -> frozenset[str]:
    """Ids of which anything that is said in the store may have changed; what was not touched is the same object."""
    placements = (placement.id for placement in _differing(before.placements, after.placements))
    statuses = (status.id for status in _differing(before.statuses, after.statuses))
    heads = (layout.head for layout in _differing(before.layouts, after.layouts))
    unreadable = (key.rpartition("/")[2] for key in before.unreadable.keys() | after.unreadable.keys())
    return frozenset(chain(placements, statuses, heads, unreadable))


def told_anew(before: Snapshot, after: Snapshot) -> tuple[ReplicaStatus, ...]:
    """Statuses that say something else than before."""
    old = {(status.node, status.id): status for status in only_in(before.statuses, after.statuses)}
    new = only_in(after.statuses, before.statuses)
    return tuple(status for status in new if old.get((status.node, status.id)) != status)


def deposed(before: Snapshot, after: Snapshot) -> frozenset[str]:
    """Heads of replicas in stages that another process has followed: what runs there has no stages any more."""
    heads = {layout.id: layout.head for layout in after.layouts}
    return frozenset(layout.head for layout in before.layouts if heads.get(layout.id, layout.head) != layout.head)


def about(fleet: Snapshot, placements: frozenset[str]) -> Snapshot:
    """The fleet as far as it concerns these ids."""
    return replace(
        fleet,
        placements=tuple(placement for placement in fleet.placements if placement.id in placements),
        statuses=tuple(status for status in fleet.statuses if status.id in placements),
        unreadable={key: why for key, why in fleet.unreadable.items() if key.startswith(keys.PLACEMENTS)},
    )


def _differing(before: tuple[Told, ...], after: tuple[Told, ...]) -> Iterator[Told]:
    return chain(only_in(before, after), only_in(after, before))
