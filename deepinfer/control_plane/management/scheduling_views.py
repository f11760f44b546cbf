"""The shapes in which the management API tells what the scheduler decided, and what it would decide."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from deepinfer.control_plane.management.views import View
from deepinfer.fleet.conditions import Condition
from deepinfer.fleet.rollout import Outcome
from deepinfer.fleet.spec import DeploymentSpec, ReplicaRole


class ForeseenReplicaView(View):
    """A replica that stays, starts or stops."""

    deployment: str
    id: str | None = Field(description="null while its deployment does not exist, for that makes the name.")
    replica: int
    node: str
    devices: tuple[str, ...]
    why: str = Field(default="", description="It stops.")


class RefusalView(View):
    """Replicas without a place."""

    deployment: str
    missing: int
    reasons: dict[str, str] = Field(description="Node -> why not.")
    waits_for: str = ""


class ForeseenView(View):
    """What a change comes to when every engine becomes ready. Of other deployments, what it does to them."""

    kept: tuple[ForeseenReplicaView, ...]
    started: tuple[ForeseenReplicaView, ...]
    stopped: tuple[ForeseenReplicaView, ...]
    refused: tuple[RefusalView, ...]
    is_final: bool = Field(description="False: so many steps that they were not followed to their end.")


class RolloutView(View):
    """How far the newest generation is."""

    name: str
    generation: int
    outcome: Outcome
    reason: str = Field(description="Why it stalled or was rolled back.")
    good_generation: int | None = Field(description="The last one of which all replicas were ready at once.")
    wanted: int
    updated: int = Field(description="Replicas of the newest generation.")
    ready: int = Field(description="Those of them that are ready.")
    old: int = Field(description="Replicas of other generations, those that drain included.")
    message: str
    conditions: tuple[Condition, ...]


class RevisionView(View):
    """One generation of a deployment."""

    generation: int
    created_at: str
    cause: str
    is_newest: bool
    is_good: bool = Field(description="The one that comes back if the newest fails.")
    spec: DeploymentSpec


class RevisionList(View):
    """The revisions that are kept, oldest first."""

    object: Literal["list"] = "list"
    data: tuple[RevisionView, ...]


class ReplicaReasonView(View):
    """One replica, and why it is, stays or goes there."""

    id: str
    node: str
    devices: tuple[str, ...]
    why: str


class DeviceVerdictView(View):
    """What one device says to one more replica, by itself."""

    device: str
    free: bool
    reason: str


class NodeVerdictView(View):
    """What one node says to one more replica."""

    node: str
    fits: bool
    devices: tuple[str, ...] = Field(description="That it would get.")
    reason: str
    rank: int | None = Field(description="1 would be chosen next; null: it does not fit.")
    device_verdicts: tuple[DeviceVerdictView, ...]


class ExplanationView(View):
    """Why the replicas of a deployment are where they are, and where one more could go."""

    name: str
    role: ReplicaRole
    replicas: tuple[ReplicaReasonView, ...]
    nodes: tuple[NodeVerdictView, ...] = Field(description="Those that fit first, as they would be chosen.")
    missing: int = Field(description="Replicas without a place.")
    waits_for: str


class ForeseenChangeView(View):
    """One deployment as a write would leave it."""

    name: str
    generation: int = Field(description="That it would have.")
    changes: bool = Field(description="False: it is so already.")
    spec: DeploymentSpec = Field(description="With the defaults.")


class DryRunView(ForeseenChangeView):
    """What a write would do; nothing was written."""

    dry_run: Literal[True] = True
    foreseen: ForeseenView
    explanation: ExplanationView = Field(description="Of its first step; what is new has made-up names.")


class DryRunList(View):
    """What a write of several deployments would do, all of them together; nothing was written."""

    object: Literal["list"] = "list"
    dry_run: Literal[True] = True
    data: tuple[ForeseenChangeView, ...]
    foreseen: ForeseenView


class RebalanceView(View):
    """Replicas that go where the fleet now has a better place, and what that comes to."""

    dry_run: bool
    moves: tuple[ForeseenReplicaView, ...] = Field(description="As they are placed now.")
    foreseen: ForeseenView


class EventView(View):
    """One thing that happened."""

    about: str
    at: str
    reason: str
    message: str


class EventList(View):
    """What happened in the last hour, the newest last."""

    object: Literal["list"] = "list"
    data: tuple[EventView, ...]
