"""Room for a replica that has none: wait for what drains, or let replicas of lower priority go. Pure.

Never for the sake of an equal, never more than it takes, and nobody is sent away while what drains already makes the
room. The devices are promised at once, so that what comes later in the pass does not take them.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass

from deepinfer.control_plane.scheduler.eligibility import ineligible
from deepinfer.control_plane.scheduler.fit import exclusive
from deepinfer.control_plane.scheduler.room import Room
from deepinfer.control_plane.scheduler.sight import Sight
from deepinfer.fleet.resources import Deployment, Intent, Node, Placement

_KINDS_OF_WAY = 2  # to wait, then to use force


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


class Ways:
    """Of one deployment in one pass.

    A site changes only with what is on its node, so the best one is looked at again before it is taken, and not all of
    them for each replica.
    """

    def __init__(self, deployment: Deployment, room: Room, sight: Sight) -> None:
        self._deployment, self._room, self._sight = deployment, room, sight
        self._sites: list[tuple[bool, tuple[int, int], str, _Site]] = []  # a heap: who sends nobody away comes first
        self._looks = 0

    def make(self) -> Way:
        """For one replica; what is neither free nor waits for anything has no way."""
        best, room, deployment = self._best(), self._room, self._deployment
        if best is None:
            return Way()
        for victim in best.victims:
            room.send_away(victim, f"{deployment.name} of priority {deployment.spec.priority} takes its devices")
        held = sorted(p.id for p in room.on(best.node.name) if set(exclusive(p.devices)) & set(best.devices))
        if held:
            room.promise(best.node.name, best.devices, deployment.name)
        self._note(self._site(best.node))
        return Way(waits_for=f"{', '.join(held)} to drain on {best.node.name}") if held else Way(is_free=True)

    def _best(self) -> _Site | None:
        while self._sites or self._looks < _KINDS_OF_WAY:
            if not self._sites:
                self._look_around()
                continue
            *_, best = heapq.heappop(self._sites)
            now = self._site(best.node)
            if now == best:
                return best
            self._note(now)
        return None

    def _look_around(self) -> None:
        """By force only where waiting does not help."""
        self._looks += 1
        for node in self._sight.verified.values():
            self._note(self._site(node))

    def _note(self, site: _Site | None) -> None:
        if site is not None:
            heapq.heappush(self._sites, (bool(site.victims), site.cost, site.node.name, site))

    def _site(self, node: Node) -> _Site | None:
        if ineligible(self._deployment, node, self._room.beside(node.name), self._sight):
            return None
        waiting = _when_drained(self._deployment, node, self._room)
        if waiting is not None or self._looks < _KINDS_OF_WAY:
            return waiting
        return _by_force(self._deployment, node, self._room, self._sight)


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
    return room.fitting(deployment, node, taken)


def _is_weaker(placement: Placement, deployment: Deployment, sight: Sight) -> bool:
    """Nobody goes whose deployment cannot be read: it may have become the more important one."""
    if placement.deployment in sight.unreadable_deployments:
        return False
    return any(exclusive(placement.devices)) and _priority(placement, sight) < deployment.spec.priority


def _priority(placement: Placement, sight: Sight) -> int:
    """Of what its deployment now says; of a deleted one, what it was placed with."""
    deployment = sight.deployments.get(placement.deployment)
    return (deployment.spec if deployment else placement.spec).priority
