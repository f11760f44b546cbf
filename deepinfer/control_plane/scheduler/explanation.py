"""Why a deployment's replicas are where they are, and what each node and device says to one more. Pure.

It asks the very functions that the plan asks, about the fleet as the plan leaves it.
"""

from __future__ import annotations

from dataclasses import dataclass

from deepinfer.control_plane.scheduler.fit import NoFit, device_refusal
from deepinfer.control_plane.scheduler.plan import rolled_room
from deepinfer.control_plane.scheduler.roll import Shortfall
from deepinfer.control_plane.scheduler.room import Rank, Room
from deepinfer.control_plane.scheduler.sight import Outlook, Sight
from deepinfer.fleet.errors import DeploymentNotFound
from deepinfer.fleet.resources import Deployment, Intent, Node, Placement
from deepinfer.fleet.snapshot import Snapshot
from deepinfer.fleet.spec import ReplicaRole


@dataclass(frozen=True)
class ReplicaReason:
    """One replica, and why it is, stays or goes there."""

    id: str
    node: str
    devices: tuple[str, ...]
    why: str


@dataclass(frozen=True)
class DeviceVerdict:
    """What one device says to one more replica, by itself."""

    device: str
    free: bool
    reason: str = ""


@dataclass(frozen=True)
class NodeVerdict:
    """What one node says to one more replica. `rank` 1 would be chosen next; None: it does not fit."""

    node: str
    fits: bool
    devices: tuple[str, ...]
    reason: str
    rank: int | None
    device_verdicts: tuple[DeviceVerdict, ...]


@dataclass(frozen=True)
class Explanation:
    """Of one deployment."""

    role: ReplicaRole
    replicas: tuple[ReplicaReason, ...]
    nodes: tuple[NodeVerdict, ...]
    missing: int  # replicas without a place
    waits_for: str


def explained(fleet: Snapshot, name: str, outlook: Outlook = Outlook()) -> Explanation:  # noqa: B008  # a frozen value
    """Raises `DeploymentNotFound`."""
    sight = Sight(fleet, outlook)
    deployment = sight.deployments.get(name)
    if deployment is None:
        raise DeploymentNotFound(f"There is no deployment {name}; `deepinfer get deployments` lists them.")
    room, shortfalls = rolled_room(sight)
    shortfall = next((shortfall for of, shortfall in shortfalls if of.name == name), Shortfall())  # none if unreadable
    own = sorted(room.of(name), key=lambda placement: (placement.replica, placement.node))
    return Explanation(
        role=deployment.spec.role,
        replicas=tuple(ReplicaReason(p.id, p.node, p.devices, _why(p, deployment, sight)) for p in own),
        nodes=_node_verdicts(deployment, room, sight),
        missing=shortfall.missing,
        waits_for="; ".join(shortfall.waits_for),
    )


def _why(placement: Placement, deployment: Deployment, sight: Sight) -> str:
    if placement.intent is Intent.DRAIN:
        return f"drains: {placement.why}" if placement.why else "drains"
    if reason := sight.wants_it_elsewhere(placement):
        return f"is to be replaced: {reason}"
    if sight.is_outdated(placement, deployment):
        return f"is to be replaced by generation {deployment.generation}"
    if placement.node not in sight.verified:
        return "stays: its node is not connected, and what runs there may serve on"
    if not any(p.id == placement.id and p.epoch == placement.epoch for p in sight.placed.get(placement.id, ())):
        return "starts: it is the best place for it now"
    return "stays: what runs is left where it runs"


def _node_verdicts(deployment: Deployment, room: Room, sight: Sight) -> tuple[NodeVerdict, ...]:
    """Those that fit first, in the order in which they would be chosen."""
    found: list[tuple[Rank | None, Node, tuple[str, ...] | NoFit]] = []
    for node in sight.fleet.nodes:
        verdict = room.verdict(deployment, node)
        rank = None if isinstance(verdict, NoFit) else room.rank(deployment, node.name, verdict)
        found.append((rank, node, verdict))
    fitting = sorted((rank, node, verdict) for rank, node, verdict in found if rank is not None)
    refusing = [(None, node, verdict) for rank, node, verdict in found if rank is None]
    return tuple(
        NodeVerdict(
            node=node.name,
            fits=not isinstance(verdict, NoFit),
            devices=() if isinstance(verdict, NoFit) else verdict,
            reason=verdict.reason if isinstance(verdict, NoFit) else "",
            rank=None if isinstance(verdict, NoFit) else place,
            device_verdicts=_device_verdicts(deployment, node, room),
        )
        for place, (_, node, verdict) in enumerate([*fitting, *refusing], start=1)
    )


def _device_verdicts(deployment: Deployment, node: Node, room: Room) -> tuple[DeviceVerdict, ...]:
    refusals = {
        device.id: device_refusal(deployment.spec, node, device.id, room.taken(node.name)) for device in node.devices
    }
    return tuple(DeviceVerdict(device, not reason, reason) for device, reason in refusals.items())
