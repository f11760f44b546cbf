"""The shapes the management API answers with: what a person or the CLI reads, and what /docs describes."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from deepinfer.fleet.conditions import Condition
from deepinfer.fleet.resources import ContainerRuntime, Device, InstalledEngine, Intent, Phase
from deepinfer.fleet.rollout import Outcome
from deepinfer.fleet.spec import DeploymentSpec, ReplicaRole

DeploymentPhase = Literal["ready", "progressing", "refused", "failed", "draining", "stopped"]
NodeState = Literal["ready", "cordoned", "draining", "leaving", "under-pressure", "away", "lost"]


class View(BaseModel):
    """A value that is only shown."""

    model_config = {"frozen": True, "protected_namespaces": ()}


class ReplicaView(View):
    """One running copy of a deployment: where it is and what was last seen of it."""

    id: str
    deployment: str
    replica: int
    epoch: int
    generation: int
    node: str
    node_alive: bool = Field(description="False: its last known state is shown; the engine may still serve.")
    devices: tuple[str, ...]
    intent: Intent
    why: str = Field(default="", description="Why it drains, if it does.")
    phase: Phase | None = Field(
        default=None, description="null until the node's agent has said something of this epoch."
    )
    message: str = ""
    endpoint: str | None = None
    pid: int | None = None
    restarts: int = 0
    memory_bytes: int | None = None
    role: ReplicaRole = Field(
        default=ReplicaRole.BOTH, description="Which part of requests it is given: its deployment's."
    )


class DeploymentStatus(View):
    """How far the fleet is with a deployment."""

    phase: DeploymentPhase
    ready: int
    wanted: int
    message: str = Field(description="What is missing, or what to do; empty when all is well.")
    outcome: Outcome = Field(description="Of its newest generation; when that was rolled back, an earlier one runs.")


class Identity(View):
    """What tells one deployment from another, and one of its specs from the next."""

    name: str
    uid: str
    generation: int
    created_at: str


class DeploymentView(DeploymentSpec, Identity):
    """A deployment: what was asked for, and what has become of it."""

    status: DeploymentStatus
    replica_list: tuple[ReplicaView, ...]
    refusals: dict[str, str] = Field(description="Node -> why a missing replica cannot go there.")
    conditions: tuple[Condition, ...] = Field(description="As the scheduler concluded last.")


class AbsenceView(View):
    """Of a node that should run something and is not connected."""

    since: str
    held: str = Field(description="Why it is waited for although its grace is over.")


class NodeView(View):
    """One machine. A node known only from what was placed on it is not alive and shows no devices."""

    name: str
    alive: bool
    state: NodeState
    labels: dict[str, str] = Field(default_factory=dict)
    pressure: tuple[str, ...] = Field(default=(), description="What it runs out of, while it takes nothing new.")
    absence: AbsenceView | None = None
    devices: tuple[Device, ...] = ()
    engines: tuple[InstalledEngine, ...] = ()
    containers: ContainerRuntime | None = None
    version: str = ""
    agent_endpoint: str = ""
    fleet_trouble: str = Field(default="", description="Why it goes by none of what the store says.")
    replicas: tuple[str, ...]


class DeploymentList(View):
    """Every deployment, by name."""

    object: Literal["list"] = "list"
    data: tuple[DeploymentView, ...]


class ReplicaList(View):
    """Every replica, by deployment and number."""

    object: Literal["list"] = "list"
    data: tuple[ReplicaView, ...]


class NodeList(View):
    """Every node, by name."""

    object: Literal["list"] = "list"
    data: tuple[NodeView, ...]


class Deleted(View):
    """The deployment is gone; its replicas drain and then stop."""

    name: str
    deleted: Literal[True] = True


class NodeForgotten(View):
    """Nothing more is kept of the node."""

    name: str
    forgotten: Literal[True] = True


class FleetIdentityView(View):
    """The fleet this store holds, as this control plane knows it."""

    id: str
    trouble: str = Field(description="Why the store that answers is not taken for this fleet's; empty when it is.")
    alarm: str = Field(
        description="What etcd has raised an alarm about, such as a full database, and the next step; empty when there "
        "is none, when etcd does not answer, or when it tells that to its root alone."
    )
    stale_since: str | None = Field(description="Since when nothing new is known; null while the store answers.")
    waiting_nodes: dict[str, str] = Field(description="Node -> why it goes by none of what the store says.")
