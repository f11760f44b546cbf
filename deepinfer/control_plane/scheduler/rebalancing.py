"""Which replicas would now get a better place than they have. Pure, and only on request: what runs is left alone.

A better place is an accelerator instead of the cpu, then a node with fewer (or, packed, with more) beside it. Each
replica moves once at most, and each is looked at with the earlier ones moved, so that two do not change places.
"""

from __future__ import annotations

from collections.abc import Iterator

from deepinfer.control_plane.scheduler.plan import rolled_room
from deepinfer.control_plane.scheduler.room import Room
from deepinfer.control_plane.scheduler.sight import Outlook, Sight
from deepinfer.fleet.resources import Deployment, Intent, Move, Placement
from deepinfer.fleet.snapshot import Snapshot


def better_places(fleet: Snapshot, outlook: Outlook = Outlook()) -> tuple[Move, ...]:  # noqa: B008  # a frozen value
    """The moves to ask for; none while anything else is under way with a deployment."""
    sight = Sight(fleet, outlook)
    room, _ = rolled_room(sight)
    return tuple(
        Move(placement=placement.id, epoch=placement.epoch)
        for deployment in sight.deployments.values()
        for placement in _movable(deployment, room, sight)
        if _moves(placement, deployment, room)
    )


def _movable(deployment: Deployment, room: Room, sight: Sight) -> Iterator[Placement]:
    """What drains on a node that is not there may do so for ever, and keeps nobody from moving."""
    own = [p for p in room.of(deployment.name) if p.intent is Intent.SERVE or p.node in sight.verified]
    if all(p.intent is Intent.SERVE and sight.is_ready(p) and p.node in sight.verified for p in own):
        yield from sorted(own, key=lambda placement: placement.id)


def _moves(placement: Placement, deployment: Deployment, room: Room) -> bool:
    instead = room.without(placement, deployment)
    if instead.best is None or instead.best[:-1] >= instead.own[:-1]:  # the name of a node makes it no better
        return False
    room.move(placement, deployment)
    return True
