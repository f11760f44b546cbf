"""What is placed so far, and where one more would go. Filled in one pass and thrown away.

Deterministic: equal fleets give equal places. Thousands of replicas on thousands of nodes stay cheap, because a node's
rank for a deployment depends on what is on that node only: seats lie in a heap, and the best one is looked at again
before it is given out.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from deepinfer.control_plane.scheduler.eligibility import ineligible
from deepinfer.control_plane.scheduler.fit import CPU, NoFit, devices_for, exclusive, fitting_devices
from deepinfer.control_plane.scheduler.identity import next_epoch, placement_id
from deepinfer.control_plane.scheduler.retention import draining
from deepinfer.control_plane.scheduler.sight import Sight
from deepinfer.fleet.resources import Deployment, Intent, Node, Placement
from deepinfer.fleet.spec import Strategy

_NOBODY: Counter[str] = Counter()
Rank = tuple[bool, int, int, int, str]
Seat = tuple[Rank, tuple[str, ...]]


class Instead(NamedTuple):
    """How good the best place would be, and the very one that was left."""

    best: Rank | None
    own: Rank


class Room:
    """Every placement of the plan in the making, and the devices they hold."""

    def __init__(self, sight: Sight, retained: Iterable[Placement]) -> None:
        self._sight = sight
        self._on: defaultdict[str, dict[str, Placement]] = defaultdict(dict)  # node -> id
        self._of: defaultdict[str, dict[tuple[str, str], Placement]] = defaultdict(dict)  # deployment -> node and id
        self._ids = set(sight.unreadable_ids)
        self._taken: defaultdict[str, dict[str, str]] = defaultdict(
            dict
        )  # node -> device -> its holder, or who was promised it
        self._going: dict[str, dict[str, Placement]] = {}  # node -> id: serves on, and is to be replaced
        self._promised: set[tuple[str, str]] = set()
        self._beside: defaultdict[str, Counter[str]] = defaultdict(Counter)  # node -> deployment -> how many
        self._seats: dict[str, list[Seat]] = {}
        self._lowest_free: dict[str, int] = {}
        for placement in retained:
            self._add(placement)

    @property
    def placements(self) -> Iterable[Placement]:
        return (placement for there in self._on.values() for placement in there.values())

    def of(self, deployment: str) -> list[Placement]:
        """What is placed of it, and what still is."""
        return list(self._of.get(deployment, {}).values())

    def on(self, node: str) -> Iterable[Placement]:
        return self._on.get(node, {}).values()

    def place(self, deployment: Deployment) -> Placement | None:
        """One more replica, where it is best; None where there is no room."""
        seat = self._best_seat(deployment)
        return None if seat is None else self._add(self._new(deployment, seat))

    def has_seat(self, deployment: Deployment) -> bool:
        return self._best_seat(deployment) is not None

    def renew(self, placement: Placement, deployment: Deployment) -> Placement:
        """The same slot on the same devices, with the deployment's spec, as a new epoch."""
        changes = {
            "epoch": next_epoch(deployment, self._last_epoch(placement.id)),
            "generation": deployment.generation,
            "spec": deployment.spec,
        }
        return self.put(placement.model_copy(update=changes))

    def put(self, placement: Placement) -> Placement:
        """In place of what has its id there, on the same devices."""
        self._on[placement.node][placement.id] = placement
        self._of[placement.deployment][placement.node, placement.id] = placement
        if placement.node in self._going:
            self._going[placement.node].pop(placement.id, None)
        holder = f"{placement.id}, which drains" if placement.intent is Intent.DRAIN else placement.id
        taken = self._taken[placement.node]
        for device in exclusive(placement.devices):
            taken[device] = holder
        return placement

    def note_going(self, placement: Placement) -> None:
        """It serves until its successor is ready; the successor's place is chosen as if it were gone."""
        self._going.setdefault(placement.node, {})[placement.id] = placement

    def send_away(self, placement: Placement, why: str) -> None:
        """It drains; what is gone already leaves at once."""
        if self._sight.is_gone(placement):
            self._remove(placement)
            self._seats.clear()
            self._lowest_free.clear()
        else:
            self.put(draining(placement, why))

    def without(self, placement: Placement, deployment: Deployment) -> Instead:
        """What one more of the deployment could get if `placement` were not there."""
        self._remove(placement)
        node = self._sight.verified.get(placement.node)
        seats = (self._best_seat(deployment), self._seat(deployment, node) if node else None)
        best = min((seat for seat in seats if seat is not None), default=None)
        own = self.rank(deployment, placement.node, placement.devices)
        self._add(placement)
        return Instead(best[0] if best else None, own)

    def move(self, placement: Placement, deployment: Deployment) -> None:
        """As if it had been replaced already; only to look what would be then."""
        self._remove(placement)
        self._offer_again(placement.node)
        self.place(deployment)

    def promise(self, node: str, devices: Iterable[str], deployment: str) -> None:
        """Nobody who comes later in this pass gets these, or comes beside the deployment if the two must not meet."""
        self._beside[node][deployment] += 1
        for device in exclusive(tuple(devices)):
            self._taken[node][device] = f"{deployment}, which waits for it"
            self._promised.add((node, device))

    def is_promised(self, node: str, device: str) -> bool:
        return (node, device) in self._promised

    def verdict(self, deployment: Deployment, node: Node) -> tuple[str, ...] | NoFit:
        """The devices one more would get on the node, or why not in words that follow the node's name."""
        if reason := ineligible(deployment, node, self.beside(node.name), self._sight):
            return NoFit(reason)
        return devices_for(deployment.spec, node, self.taken(node.name))

    def fitting(self, deployment: Deployment, node: Node, taken: Mapping[str, str]) -> tuple[str, ...] | None:
        """The devices one more would get there if these were taken."""
        return fitting_devices(deployment.spec, node, taken, self._sight.offers[node.name])

    def taken(self, node: str) -> Mapping[str, str]:
        return self._taken.get(node, {})

    def beside(self, node: str) -> Iterable[str]:
        """The deployments that run there, or still do."""
        return [name for name, count in self._beside.get(node, {}).items() if count]

    def rank(self, deployment: Deployment, node: str, devices: tuple[str, ...]) -> Rank:
        """Smaller is better. Accelerators first ("auto" may get either); the name breaks ties: a plan must not flap."""
        going = self._going.get(node, {}).values()
        there = len(self._on.get(node, ())) - len(going)
        if deployment.spec.strategy is Strategy.PACK:
            freed = {device for placement in going for device in exclusive(placement.devices)}
            return devices == CPU, self._free_devices(node) + len(freed), -there, len(going), node
        own = sum(placement.deployment == deployment.name for placement in going)
        return devices == CPU, self._beside.get(node, _NOBODY)[deployment.name] - own, there, len(going), node

    def _best_seat(self, deployment: Deployment) -> Seat | None:
        """The first of the heap that still is as it was when it was put there."""
        seats = self._seats.get(deployment.name)
        if seats is None:
            looked_at = (self._seat(deployment, node) for node in self._sight.verified.values())
            seats = self._seats[deployment.name] = [seat for seat in looked_at if seat is not None]
            heapq.heapify(seats)
        while seats:
            best = seats[0]
            now = self._seat(deployment, self._sight.verified[best[0][-1]])
            if now == best:
                return best
            if now is None:
                heapq.heappop(seats)
            else:
                heapq.heapreplace(seats, now)
        return None

    def _seat(self, deployment: Deployment, node: Node) -> Seat | None:
        if ineligible(deployment, node, self.beside(node.name), self._sight):
            return None
        devices = self.fitting(deployment, node, self.taken(node.name))
        return None if devices is None else (self.rank(deployment, node.name, devices), devices)

    def _offer_again(self, name: str) -> None:
        """Something is gone from the node, so it may be better for everybody than their heaps have it."""
        node = self._sight.verified.get(name)
        if node is None:
            return
        for deployment, seats in self._seats.items():
            seat = self._seat(self._sight.deployments[deployment], node)
            if seat is not None:
                heapq.heappush(seats, seat)

    def _free_devices(self, node: str) -> int:
        offered = exclusive(tuple(device.id for device in self._sight.verified[node].devices))
        return sum(device not in self.taken(node) for device in offered)

    def _new(self, deployment: Deployment, seat: Seat) -> Placement:
        (*_, node), devices = seat
        slot = self._free_slot(deployment)
        name = placement_id(deployment, slot)
        return Placement(
            id=name,
            epoch=next_epoch(deployment, self._last_epoch(name)),
            deployment=deployment.name,
            generation=deployment.generation,
            replica=slot,
            node=node,
            devices=devices,
            spec=deployment.spec,
        )

    def _free_slot(self, deployment: Deployment) -> int:
        slot = self._lowest_free.get(deployment.name, 0)
        while placement_id(deployment, slot) in self._ids:
            slot += 1
        self._lowest_free[deployment.name] = slot
        return slot

    def _last_epoch(self, name: str) -> int:
        """The highest that was placed or told of, also of what is dropped in this pass or was in an earlier one."""
        placed = (placement.epoch for placement in self._sight.placed.get(name, ()))
        return max((*placed, self._sight.newest_told.get(name, 0), self._sight.moved.get(name, 0)))

    def _add(self, placement: Placement) -> Placement:
        self._ids.add(placement.id)
        self._beside[placement.node][placement.deployment] += 1
        return self.put(placement)

    def _remove(self, placement: Placement) -> None:
        del self._on[placement.node][placement.id]
        self._going.get(placement.node, {}).pop(placement.id, None)
        del self._of[placement.deployment][placement.node, placement.id]
        self._ids.discard(placement.id)
        self._beside[placement.node][placement.deployment] -= 1
        for device in exclusive(placement.devices):
            del self._taken[placement.node][device]
