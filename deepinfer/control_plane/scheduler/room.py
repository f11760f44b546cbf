"""Where missing replicas go, and why they cannot. Deterministic: equal fleets give equal places."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from deepinfer.control_plane.scheduler.fit import CPU, NoFit, devices_for, exclusive
from deepinfer.control_plane.scheduler.retention import next_epoch, placement_id
from deepinfer.control_plane.scheduler.sight import Sight
from deepinfer.fleet.resources import Deployment, Node, Placement, Refusal


class Room:
    """What is placed so far. Filled in one pass and thrown away."""

    def __init__(self, sight: Sight, retained: Iterable[Placement]) -> None:
        self._sight = sight
        self._epochs: dict[str, int] = {}
        self._load: Counter[str] = Counter()
        self._spread: Counter[tuple[str, str]] = Counter()
        self._taken: dict[str, dict[str, str]] = {}
        self._ids = set(sight.unreadable_ids)
        self.placements: list[Placement] = []
        known = [(p.id, p.epoch) for p in sight.fleet.placements]  # also those that are dropped in this pass
        known += [(status.id, status.epoch) for status in sight.fleet.statuses]  # and in earlier ones
        for name, epoch in known:
            self._epochs[name] = max(epoch, self._epochs.get(name, 0))
        for placement in retained:
            self._take(placement)

    def place_missing(self, deployment: Deployment) -> int:
        """Place what can be placed of it; the answer is how many replicas are left without a place."""
        return sum(
            not self._place(deployment, replica)
            for replica in range(deployment.spec.replicas)
            if placement_id(deployment, replica) not in self._ids
        )

    def refusal(self, deployment: Deployment, missing: int) -> Refusal:
        """Asked when everything is placed, so that the reasons are those of the fleet as it will be."""
        verdicts = {node.name: self._verdict(deployment, node) for node in self._sight.fleet.nodes}
        reasons = {name: verdict.reason for name, verdict in verdicts.items() if isinstance(verdict, NoFit)}
        reasons |= dict.fromkeys(self._sight.unreadable_nodes, "its record cannot be read")
        return Refusal(deployment=deployment.name, missing=missing, reasons=dict(sorted(reasons.items())))

    def _place(self, deployment: Deployment, replica: int) -> bool:
        offers = [(node, self._verdict(deployment, node)) for node in self._sight.fleet.nodes]
        found = [(node, devices) for node, devices in offers if not isinstance(devices, NoFit)]
        if not found:
            return False
        node, devices = min(found, key=lambda offer: self._preference(deployment, *offer))
        self._take(_placement(deployment, replica, node, devices, self._epochs))
        return True

    def _verdict(self, deployment: Deployment, node: Node) -> tuple[str, ...] | NoFit:
        if node.name in self._sight.unreadable_on:
            return NoFit(f"{self._sight.unreadable_on[node.name]} cannot be read, so its free devices are unknown")
        return devices_for(deployment.spec, node, self._taken.get(node.name, {}))

    def _preference(self, deployment: Deployment, node: Node, devices: tuple[str, ...]) -> tuple[bool, int, int, str]:
        """Accelerators first ("auto" may get either), then spread; the name breaks ties: a plan must not flap."""
        return devices == CPU, self._spread[deployment.name, node.name], self._load[node.name], node.name

    def _take(self, placement: Placement) -> None:
        self.placements.append(placement)
        self._ids.add(placement.id)
        self._load[placement.node] += 1
        self._spread[placement.deployment, placement.node] += 1
        holder = dict.fromkeys(exclusive(placement.devices), placement.id)
        self._taken.setdefault(placement.node, {}).update(holder)


def _placement(
    deployment: Deployment, replica: int, node: Node, devices: tuple[str, ...], epochs: Mapping[str, int]
) -> Placement:
    name = placement_id(deployment, replica)
    return Placement(
        id=name,
        epoch=next_epoch(deployment, epochs.get(name, 0)),
        deployment=deployment.name,
        generation=deployment.generation,
        replica=replica,
        node=node.name,
        devices=devices,
        spec=deployment.spec,
    )
