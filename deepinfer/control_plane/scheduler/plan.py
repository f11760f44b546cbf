"""Where replicas go: the whole wanted state from one snapshot. Pure: no clock, no store, no randomness.

What runs is left where it runs. A node that lost its lease is unverified, which alone is never a reason to move,
restart or forget anything on it, except what its agent reported stopped before it left; only the leader, who counts
how long it has been away, calls it lost. No slot runs twice: a placement is dropped when its agent has seen it gone,
and on a lost node it stays, draining, for the day the node returns. What cannot be read is left exactly as it is, and
nothing new is put beside it.
"""

from __future__ import annotations

from dataclasses import dataclass

from deepinfer.control_plane.scheduler.fit import NoFit
from deepinfer.control_plane.scheduler.retention import retained
from deepinfer.control_plane.scheduler.roll import Roll, Shortfall
from deepinfer.control_plane.scheduler.room import Room
from deepinfer.control_plane.scheduler.sight import Outlook, Sight
from deepinfer.fleet import keys
from deepinfer.fleet.resources import Deployment, Node, Placement, Refusal
from deepinfer.fleet.snapshot import Snapshot

_MOST_LOOKS = 4
MOST_TOLD = 50
"""Nodes whose reasons a refusal holds: those of a thousand would be more than etcd takes, and than a person reads."""


@dataclass(frozen=True)
class Plan:
    """All placements and refusals there should be, sorted by key."""

    placements: tuple[Placement, ...]
    refusals: tuple[Refusal, ...]


def plan(fleet: Snapshot, outlook: Outlook = Outlook()) -> Plan:  # noqa: B008  # a frozen value
    """Every placement the fleet should have, and why the missing ones have no place."""
    sight = Sight(fleet, outlook)
    room, shortfalls = rolled_room(sight)
    refusals = [_refusal(d, shortfall, room, sight) for d, shortfall in shortfalls if shortfall.missing]
    untouched = [refusal for refusal in fleet.refusals if refusal.deployment in sight.unreadable_deployments]
    return Plan(
        placements=_sorted(room),
        refusals=tuple(sorted(refusals + untouched, key=lambda r: keys.refusal(r.deployment))),
    )


def planned(fleet: Snapshot, wanted: Plan) -> Snapshot:
    """The fleet once the plan is written: `plan(planned(fleet, plan(fleet))) == plan(fleet)`."""
    return fleet.but(placements=wanted.placements, refusals=wanted.refusals)


def rolled_room(sight: Sight) -> tuple[Room, list[tuple[Deployment, Shortfall]]]:
    """The room once every deployment has taken its step; and what each lacks.

    Who gave up a place for a successor of its own may change what its equals find, so then all look again: a plan that
    is written stands.
    """
    room, rolls = _rolled_once(sight)
    for _ in range(_MOST_LOOKS):
        if not any(roll.gives_way for roll in rolls):
            break
        placements = _sorted(room)
        again, rolls_again = _rolled_once(Sight(sight.fleet.but(placements=placements), sight.outlook))
        stands = _sorted(again) == placements and [r.shortfall for r in rolls_again] == [r.shortfall for r in rolls]
        room, rolls = again, rolls_again
        if stands:
            break
    return room, [(roll.deployment, roll.shortfall) for roll in rolls]


def _rolled_once(sight: Sight) -> tuple[Room, list[Roll]]:
    """The most important first; of equals, those first that gave up a place: nobody else may take it."""
    room = Room(sight, retained(sight))
    readable = (d for d in sight.deployments.values() if d.name not in sight.unreadable_deployments)
    rolls = [Roll(deployment, room, sight) for deployment in sorted(readable, key=lambda d: d.name)]
    rolls.sort(key=lambda roll: -roll.deployment.spec.priority)
    for roll in rolls:
        roll.let_go()
    rolls.sort(key=lambda roll: (-roll.deployment.spec.priority, not roll.gives_way))
    for roll in rolls:
        roll.fill()
    return room, sorted(rolls, key=lambda roll: roll.deployment.name)


def _sorted(room: Room) -> tuple[Placement, ...]:
    return tuple(sorted(room.placements, key=lambda p: keys.placement(p.node, p.id)))


def _refusal(deployment: Deployment, shortfall: Shortfall, room: Room, sight: Sight) -> Refusal:
    """Asked when everything is placed, so that the reasons are those of the fleet as it will be."""
    nodes = {node.name: node for node in sight.fleet.nodes}
    known = sorted(nodes.keys() | sight.unreadable_nodes)
    told = ((name, _reason(deployment, nodes.get(name), room)) for name in known[:MOST_TOLD])
    return Refusal(
        deployment=deployment.name,
        missing=shortfall.missing,
        reasons={name: reason for name, reason in told if reason},
        untold=len(known[MOST_TOLD:]),
        waits_for="; ".join(shortfall.waits_for),
    )


def _reason(deployment: Deployment, node: Node | None, room: Room) -> str:
    if node is None:
        return "its record cannot be read"
    verdict = room.verdict(deployment, node)
    return verdict.reason if isinstance(verdict, NoFit) else ""
