"""Room for a replica that has none: wait for what drains, or let replicas of lower priority go. Pure.

Never for the sake of an equal, never more than it takes, and nobody is sent away while what drains already makes the
room. The devices are promised at once, so that what comes later in the pass does not take them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from deepinfer.control_plane.scheduler.eligibility import ineligible
from deepinfer.control_plane.scheduler.fit import exclusive, fitting_devices
from deepinfer.control_plane.scheduler.room import Room
from deepinfer.control_plane.scheduler.sight import Sight
from deepinfer.fleet.resources import Deployment, Intent, Node, Placement


@dataclass(frozen=True)
class _Site:
    """What would have to go from a node, and the devices that it makes free."""

    node: Node
    devices: tuple[str, ...]
    victims: tuple[Placement, ...]
    cost: tuple[int, int]  # the highest priority among the victims, and how many they are


@dataclass(frozen=True)
class Way:
    """Found, or found none."""

    is_free: bool = False  # by now
    waits_for: str = ""


def made_way(deployment: Deployment, room: Room, sight: Sight) -> Way:
    """For one replica; what is neither free nor waits for anything has no way."""
    eligible = [n for n in sight.verified.values() if not ineligible(deployment, n, room.beside(n.name), sight)]
    waiting = [site for node in eligible if (site := _when_drained(deployment, node, room))]
    sites = waiting or [site for node in eligible if (site := _by_force(deployment, node, room, sight))]
    if not sites:
        return Way()
    best = min(sites, key=lambda site: (site.cost, site.node.name))
    for victim in best.victims:
        room.send_away(victim, f"{deployment.name} of priority {deployment.spec.priority} takes its devices")
    held = sorted(p.id for p in room.on(best.node.name) if set(exclusive(p.devices)) & set(best.devices))
    if not held:
        return Way(is_free=True)
    room.promise(best.node.name, best.devices, deployment.name)
    return Way(waits_for=f"{', '.join(held)} to drain on {best.node.name}")


def _when_drained(deployment: Deployment, node: Node, room: Room) -> _Site | None:
    leaving = [placement for placement in room.on(node.name) if placement.intent is Intent.DRAIN]
    devices = _devices_without(leaving, deployment, node, room) if leaving else None
    return None if devices is None else _Site(node, devices, (), (0, 0))


def _by_force(deployment: Deployment, node: Node, room: Room, sight: Sight) -> _Site | None:
    """The weakest go first, and only those whose devices it gets."""
    leaving = [placement for placement in room.on(node.name) if placement.intent is Intent.DRAIN]
    weaker = sorted(
        (p for p in room.on(node.name) if p.intent is Intent.SERVE and _is_weaker(p, deployment, sight)),
        key=lambda p: (_priority(p, sight), p.id),
    )
    for count in range(1, len(weaker) + 1):
        devices = _devices_without([*leaving, *weaker[:count]], deployment, node, room)
        if devices is not None:
            victims = tuple(p for p in weaker[:count] if set(p.devices) & set(devices))
            return _Site(node, devices, victims, (_priority(weaker[count - 1], sight), len(victims)))
    return None


def _devices_without(
    those: Iterable[Placement], deployment: Deployment, node: Node, room: Room
) -> tuple[str, ...] | None:
    freed = {d for placement in those for d in placement.devices if not room.is_promised(node.name, d)}
    taken = {device: holder for device, holder in room.taken(node.name).items() if device not in freed}
    return fitting_devices(deployment.spec, node, taken)


def _is_weaker(placement: Placement, deployment: Deployment, sight: Sight) -> bool:
    """Nobody goes whose deployment cannot be read: it may have become the more important one."""
    if placement.deployment in sight.unreadable_deployments:
        return False
    return any(exclusive(placement.devices)) and _priority(placement, sight) < deployment.spec.priority


def _priority(placement: Placement, sight: Sight) -> int:
    """Of what its deployment now says; of a deleted one, what it was placed with."""
    deployment = sight.deployments.get(placement.deployment)
    return (deployment.spec if deployment else placement.spec).priority
