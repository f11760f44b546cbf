"""The vocabulary every process shares: what a user wants, where it goes, what was seen of it."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field, StringConstraints

from deepinfer.fleet.pipeline import PipelineState
from deepinfer.fleet.resource import LabelKey, LabelValue, Name, Record, Version
from deepinfer.fleet.spec import DeploymentSpec, EngineKind


class Intent(StrEnum):
    """What a placement should do (desired)."""

    SERVE = "serve"
    DRAIN = "drain"  # finish what runs, then stop and be forgotten


class Phase(StrEnum):
    """What an engine was last seen doing (observed)."""

    PREPARING = "preparing"  # its model's files are fetched or converted
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STOPPED = "stopped"
    RESTARTING = "restarting"  # it was ready, broke, and is started again
    FAILED = "failed"  # it never became ready; the message says whether it is tried again


class Deployment(Record):
    """A spec with a name. Every change of the spec is a new generation."""

    name: Name
    uid: Annotated[str, StringConstraints(pattern=r"^[a-z0-9]{5}$")]  # tells a re-created deployment from the old one
    generation: int = Field(ge=1)
    created_at: str  # ISO 8601, UTC; shown to people, never compared
    spec: DeploymentSpec


class Device(Record):
    """One thing a node can compute on."""

    id: str  # "cpu", "cuda:0", "sim:0"
    kind: str  # "cpu", "cuda", "sim"
    name: str
    memory_bytes: int
    compute_capability: Version | None = None  # of CUDA devices, such as "8.9"


ANY_ACCELERATOR = "any"


class InstalledEngine(Record):
    """An engine that can be started on a node."""

    kind: EngineKind
    version: Version
    accelerator: str  # the kind of device it was built for: "cpu", "cuda", or "any"


class ContainerRuntime(Record):
    """What runs containers on a node: Docker, or what speaks like it."""

    version: str = ""  # "" until it has answered
    trouble: str = ""  # why it is of no use now
    warning: str = ""  # what its set-up will cost one day


class Node(Record):
    """One machine's agent and what it offers. Its key lives under the agent's lease."""

    name: Name
    instance: str  # of the agent's state folder: tells a restarted agent from a second one with the same name
    agent_endpoint: str  # host:port of its gRPC service (logs)
    devices: tuple[Device, ...]
    engines: tuple[InstalledEngine, ...]  # that can be started here
    containers: ContainerRuntime | None = None
    labels: dict[LabelKey, LabelValue] = Field(default_factory=dict)
    pressure: tuple[str, ...] = ()  # what it runs out of, in words; while there is any, it takes nothing new
    fleet: str = ""  # the id of the fleet it joined
    fleet_trouble: str = ""  # why it goes by none of what this store says: it starts and stops nothing
    pipeline_key: str = ""  # the fingerprint of what its stages know each other by
    leaving: bool = False  # its agent was told to go: what runs there is to be replaced elsewhere first
    version: str


class NodeSettings(Record):
    """What people decided about a node."""

    node: Name
    cordoned: bool = False  # nothing new goes there
    drain: bool = False  # what is there is replaced elsewhere, then stopped
    lost: bool = False  # while it is not connected: it will not come back, so do not wait for it


class Placement(Record):
    """A replica bound to devices of a node. An engine of an older epoch is never routed to."""

    id: str  # DEPLOYMENT-UID-SLOT
    epoch: int = Field(ge=1)
    deployment: Name
    generation: int
    replica: int = Field(ge=0)  # its slot: the lowest that was free
    node: Name
    devices: tuple[str, ...]
    intent: Intent = Intent.SERVE
    why: str = ""  # it drains
    spec: DeploymentSpec


class ReplicaStatus(Record):
    """What the agent saw of a placement. Not under the lease: when an agent dies, its engines go on serving."""

    id: str
    epoch: int
    node: Name
    phase: Phase
    message: str = ""  # progress, or why it failed and what to do
    endpoint: str | None = None  # host:port of the shim
    pid: int | None = None
    restarts: int = 0
    memory_bytes: int | None = None  # held by the engine, as it reports
    failures: int = 0  # in a row, without ten good minutes between them
    given_up: bool = False  # it is not tried again: its spec cannot work
    pipeline: PipelineState | None = None  # of a replica in stages


class Refusal(Record):
    """Why replicas of a deployment have no place."""

    deployment: Name
    missing: int  # replicas without a place
    reasons: dict[str, str]  # node -> why not, of the first ones by name
    untold: int = 0  # nodes more; `deepinfer explain` has the reasons of all
    waits_for: str = ""  # what will make room by itself

    @property
    def told(self) -> str:
        """The reasons; empty where there is no node."""
        more = [f"and {self.untold} more nodes (see `deepinfer explain {self.deployment}`)"] if self.untold else []
        return "; ".join([*(f"{node} {reason}" for node, reason in self.reasons.items()), *more])


class Absence(Record):
    """A node that should run something and is not connected."""

    node: Name
    since: str  # ISO 8601, UTC: when the control plane's leader first missed it
    lost: bool = False  # it is not waited for any longer
    held: str = ""  # why it is waited for although its grace is over


class Move(Record):
    """A person asked that this very epoch of a replica be replaced where the fleet now has a better place."""

    placement: str
    epoch: int
