"""Where replicas go: the whole wanted state from one snapshot. Pure: no clock, no store, no randomness.

What runs is left where it runs. A node that lost its lease is unverified, which is never a reason to move, restart or
forget anything on it, except what its agent reported stopped before it left. A replica that must leave its devices
drains, is seen to be gone, and only then gets a new place: it never runs twice. What cannot be read is left exactly as
it is, and nothing new is put beside it.
It does not roll out step by step: when a spec changes, all replicas of the deployment change at once.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from deepinfer.control_plane.scheduler.retention import retained
from deepinfer.control_plane.scheduler.room import Room
from deepinfer.control_plane.scheduler.sight import Sight
from deepinfer.fleet import keys
from deepinfer.fleet.resources import Placement, Refusal
from deepinfer.fleet.snapshot import Snapshot


@dataclass(frozen=True)
class Plan:
    """All placements and refusals there should be, sorted by key."""

    placements: tuple[Placement, ...]
    refusals: tuple[Refusal, ...]


def plan(fleet: Snapshot) -> Plan:
    """Every placement the fleet should have, and why the missing ones have no place."""
    sight = Sight(fleet)
    room = Room(sight, retained(sight))
    missing = [(deployment, room.place_missing(deployment)) for deployment in fleet.deployments]
    refusals = [room.refusal(deployment, count) for deployment, count in missing if count]
    untouched = [refusal for refusal in fleet.refusals if refusal.deployment in sight.unreadable_deployments]
    return Plan(
        placements=tuple(sorted(room.placements, key=lambda p: keys.placement(p.node, p.id))),
        refusals=tuple(sorted(refusals + untouched, key=lambda r: keys.refusal(r.deployment))),
    )


def planned(fleet: Snapshot, wanted: Plan) -> Snapshot:
    """The fleet once the plan is written: `plan(planned(fleet, plan(fleet))) == plan(fleet)`."""
    return dataclasses.replace(fleet, placements=wanted.placements, refusals=wanted.refusals)
