"""What a model that cannot answer yet is waiting for, in words. Pure: from the snapshot and the router's troubles."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime

from deepinfer.control_plane.router.routes import newest_epochs
from deepinfer.fleet import keys
from deepinfer.fleet.alias import Alias
from deepinfer.fleet.resources import Deployment, Intent, Phase, Placement
from deepinfer.fleet.snapshot import Snapshot


def deployments_by_name(fleet: Snapshot) -> dict[str, list[Deployment]]:
    """What a request's "model" may say -> the deployments meant."""
    found: dict[str, list[Deployment]] = {}
    for deployment in fleet.deployments:
        for name in dict.fromkeys((deployment.name, deployment.spec.model)):
            found.setdefault(name, []).append(deployment)
    return found


Weights = dict[str, int]
"""Of deployments, the heaviest first."""


def weights_by_alias(fleet: Snapshot, known: Mapping[str, Weights]) -> dict[str, Weights]:
    """What a request's "model" may say besides -> the deployments meant. What cannot be read is as it was known."""
    deployed = {deployment.name for deployment in fleet.deployments}
    kept = {name: weights for name, weights in known.items() if keys.alias(name) in fleet.unreadable}
    read = {
        alias.name: {t.deployment: t.weight for t in sorted(alias.targets, key=lambda target: -target.weight)}
        for alias in fleet.aliases
    }
    return {name: weights for name, weights in (kept | read).items() if name not in deployed}


def created_seconds(deployment: Deployment | Alias) -> int:
    """OpenAI's `created`; 0 for a time nobody can read, as it is only shown to people."""
    try:
        return int(datetime.fromisoformat(deployment.created_at).timestamp())
    except ValueError:
        return 0


def waits_for(deployments: list[Deployment], fleet: Snapshot, troubles: Mapping[str, str]) -> str:
    """One sentence: what stands between these deployments and an answer."""
    names = {d.name for d in deployments}
    replicas = [p for p in newest_epochs(fleet).values() if p.deployment in names and p.intent is Intent.SERVE]
    if replicas:
        return "; ".join(_replica_waits_for(p, fleet, troubles) for p in replicas[:3])
    if any(d.spec.replicas for d in deployments):
        return "; ".join(_refusals(names, fleet)) or "its replicas have no place on a node yet"
    return "it has 0 replicas; scale it up"


def _replica_waits_for(placement: Placement, fleet: Snapshot, troubles: Mapping[str, str]) -> str:
    who = f"{placement.id} on {placement.node}"
    status = fleet.status_of(placement)
    trouble = troubles.get(placement.id, "")
    if status is None:
        return f"{who} waits for its node's agent"
    if status.phase is Phase.READY:
        return f"{who} was ready but cannot be used now{_after_colon(trouble)}"
    return f"{who} is {status.phase.value}{_after_colon(status.message or trouble)}"


def _after_colon(text: str) -> str:
    return f": {text.rstrip('.')}" if text else ""


def _refusals(names: set[str], fleet: Snapshot) -> Iterator[str]:
    for refusal in fleet.refusals:
        if refusal.deployment in names:
            for node, reason in refusal.reasons.items():
                yield f"no place on {node}: {reason.rstrip('.')}"
