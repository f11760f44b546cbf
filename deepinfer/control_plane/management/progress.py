"""How far a deployment is, in one word and one sentence. Pure.

A replica on a node that is not connected counts as it was last seen, and the sentence says so: its engine may serve on.
"""

from __future__ import annotations

from collections.abc import Sequence

from deepinfer.control_plane.management.views import DeploymentPhase, DeploymentStatus, ReplicaView
from deepinfer.fleet.resources import Deployment, Intent, Phase, Refusal

NO_NODE = "no node is connected; start one with `deepinfer worker -n NAME`"


def progress(
    deployment: Deployment, current: Sequence[ReplicaView], outdated: Sequence[ReplicaView], refusal: Refusal | None
) -> DeploymentStatus:
    """`current` replicas run the deployment's spec; `outdated` ones drain, or wait for their node to get it."""
    wanted = deployment.spec.replicas
    ready = sum(replica.phase is Phase.READY for replica in current)
    phase, message = _verdict(wanted, current, outdated, refusal)
    return DeploymentStatus(phase=phase, ready=ready, wanted=wanted, message=message)


def _verdict(
    wanted: int, current: Sequence[ReplicaView], outdated: Sequence[ReplicaView], refusal: Refusal | None
) -> tuple[DeploymentPhase, str]:
    if wanted == 0:
        return ("draining", _waits(outdated)) if outdated else ("stopped", "it has 0 replicas")
    if failed := [replica for replica in current if replica.phase is Phase.FAILED]:
        return "failed", _said(failed[0])
    if refusal is not None:
        return "refused", _refused(refusal)
    if pending := [replica for replica in current if replica.phase is not Phase.READY]:
        return "progressing", _said(pending[0])
    if len(current) < wanted:
        return "progressing", _waits(outdated) or "waiting for the scheduler"
    return "ready", _unverified(current)


def _said(replica: ReplicaView) -> str:
    if replica.phase is None:
        waiting = "waiting for its agent" if replica.node_alive else "its node is not connected"
        return f"{replica.id} on {replica.node}: {waiting}"
    return f"{replica.id} on {replica.node}: {replica.message or replica.phase}"


def _refused(refusal: Refusal) -> str:
    reasons = "; ".join(f"{node} {reason}" for node, reason in refusal.reasons.items()) or NO_NODE
    return f"{refusal.missing} without a place: {reasons}"


def _waits(outdated: Sequence[ReplicaView]) -> str:
    """What must happen before the outdated ones are replaced or gone."""
    for replica in outdated:
        if not replica.node_alive:
            return f"{replica.id} waits for node {replica.node}, which is not connected"
    return "".join(f"{replica.id} drains on {replica.node}" for replica in outdated[:1])


def _unverified(current: Sequence[ReplicaView]) -> str:
    lost = sorted({replica.node for replica in current if not replica.node_alive and replica.intent is Intent.SERVE})
    return f"last known state: node {', '.join(lost)} is not connected" if lost else ""
