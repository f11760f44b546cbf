"""The whole fleet on one page: what runs where, who leads, and how fresh all of that is. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable

from pydantic import Field

from deepinfer.control_plane.management.fleet_view import FleetView
from deepinfer.control_plane.management.views import (
    DeploymentPhase,
    DeploymentView,
    NodeState,
    NodeView,
    ReplicaView,
    View,
)
from deepinfer.fleet.resources import Intent, Phase


class StoreStatusView(View):
    """How far what is told here can be relied upon."""

    revision: int = Field(description="Of etcd, that all of this is from.")
    stale_since: str | None = Field(description="Since when nothing new is known; null while the store answers.")
    trouble: str = Field(description="Why the store that answers is not taken for this fleet's; empty when it is.")


class DeviceStatusView(View):
    """One thing to compute on, and who does."""

    id: str
    kind: str
    memory_bytes: int
    replicas: tuple[str, ...]


class NodeStatusView(View):
    """One machine."""

    name: str
    state: NodeState
    devices: tuple[DeviceStatusView, ...] = Field(description="Empty while it is not connected.")


class ReplicaStatusView(View):
    """One running copy."""

    id: str
    node: str
    devices: tuple[str, ...]
    intent: Intent
    phase: Phase | None = Field(description="null until its node's agent has said something.")


class DeploymentStatusView(View):
    """One deployment, and how far it is."""

    name: str
    model: str
    engine: str
    generation: int
    phase: DeploymentPhase
    ready: int
    wanted: int
    message: str
    replicas: tuple[ReplicaStatusView, ...]


class ClusterStatusView(View):
    """The fleet at one moment."""

    fleet: str = Field(description="Its id.")
    leader: str | None = Field(description="The control plane that schedules; null while none is elected.")
    store: StoreStatusView
    nodes: tuple[NodeStatusView, ...]
    deployments: tuple[DeploymentStatusView, ...]


def cluster_status(fleet: FleetView, fleet_id: str, leader: bytes | None, store: StoreStatusView) -> ClusterStatusView:
    """`leader` is its record."""
    replicas = fleet.replicas()
    return ClusterStatusView(
        fleet=fleet_id,
        leader=_name_of(leader),
        store=store,
        nodes=tuple(_node(node, replicas) for node in fleet.nodes()),
        deployments=tuple(map(_deployment, fleet.deployments())),
    )


def _name_of(leader: bytes | None) -> str | None:
    try:
        told = json.loads(leader or b"null")
    except ValueError:
        return None
    return str(told["name"]) if isinstance(told, dict) and "name" in told else None


def _node(node: NodeView, replicas: Iterable[ReplicaView]) -> NodeStatusView:
    here = [replica for replica in replicas if replica.node == node.name]
    return NodeStatusView(
        name=node.name,
        state=node.state,
        devices=tuple(
            DeviceStatusView(
                id=device.id,
                kind=device.kind,
                memory_bytes=device.memory_bytes,
                replicas=tuple(replica.id for replica in here if device.id in replica.devices),
            )
            for device in node.devices
        ),
    )


def _deployment(view: DeploymentView) -> DeploymentStatusView:
    shown = view.status
    return DeploymentStatusView(
        **{field: getattr(view, field) for field in ("name", "model", "engine", "generation")},
        **{field: getattr(shown, field) for field in ("phase", "ready", "wanted", "message")},
        replicas=tuple(
            ReplicaStatusView(**{field: getattr(replica, field) for field in ReplicaStatusView.model_fields})
            for replica in view.replica_list
        ),
    )
