"""Values of a small fleet: the deployment "chat" of "org/model", one replica on node-1."""

from __future__ import annotations

from deepinfer.fleet.resources import Deployment, InstalledEngine, Intent, Phase, Placement, ReplicaStatus
from deepinfer.fleet.spec import DeploymentSpec, EngineKind

UID = "aaaaa"


def installed(kind: str = "sim", version: str = "0.1.0", accelerator: str = "any") -> InstalledEngine:
    return InstalledEngine(kind=EngineKind(kind), version=version, accelerator=accelerator)


def deployment(name: str = "chat", model: str = "org/model", replicas: int = 1, second: int = 0) -> Deployment:
    spec = DeploymentSpec(model=model, replicas=replicas)
    return Deployment(name=name, uid=UID, generation=1, created_at=f"2026-01-01T00:00:{second:02}Z", spec=spec)


def placement(
    deployment: str = "chat", replica: int = 0, epoch: int = 1, node: str = "node-1", intent: Intent = Intent.SERVE
) -> Placement:
    return Placement(
        id=f"{deployment}-{UID}-{replica}",
        epoch=epoch,
        deployment=deployment,
        generation=1,
        replica=replica,
        node=node,
        devices=("cpu",),
        intent=intent,
        spec=DeploymentSpec(model="org/model"),
    )


def status(
    id: str = f"chat-{UID}-0",  # noqa: A002 - the resource's own name for it
    epoch: int = 1,
    phase: Phase = Phase.READY,
    message: str = "",
    endpoint: str | None = None,
) -> ReplicaStatus:
    return ReplicaStatus(id=id, epoch=epoch, node="node-1", phase=phase, message=message, endpoint=endpoint)
