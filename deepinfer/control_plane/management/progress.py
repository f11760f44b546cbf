"""How far a deployment is, in one word and one sentence. Pure.

A replica on a node that is not connected counts as it was last seen, and the sentence says so: its engine may serve on.
A generation that was rolled back leaves the deployment ready, with what it said, once the good one serves again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deepinfer.control_plane.management.views import DeploymentPhase, DeploymentStatus, ReplicaView
from deepinfer.control_plane.scheduler.fit import same_engine
from deepinfer.fleet.resources import Deployment, Intent, Phase, Refusal
from deepinfer.fleet.rollout import Outcome, Rollout

NO_NODE = "no node is connected; start one with `deepinfer worker -n NAME`"


@dataclass(frozen=True)
class Stage:
    """All that is known of one deployment."""

    deployment: Deployment  # as it was asked for
    current: Sequence[ReplicaView]  # of the generation that is to run
    outdated: Sequence[ReplicaView]  # they drain, or are being replaced
    refusal: Refusal | None
    rollout: Rollout | None  # of the deployment's newest generation

    @property
    def outcome(self) -> Outcome:
        return self.rollout.outcome if self.rollout else Outcome.PROGRESSING

    @property
    def wanted(self) -> int:
        return self.deployment.spec.replicas

    @property
    def ready(self) -> int:
        return sum(replica.phase is Phase.READY for replica in self.current)

    @property
    def old_ones_serve(self) -> bool:
        serving = (r for r in self.outdated if r.phase is Phase.READY and r.intent is Intent.SERVE)
        return any(serving)

    @property
    def may_come_back(self) -> bool:
        """Whether something good goes on, or comes back, should the newest generation fail for good."""
        if self.outcome is not Outcome.PROGRESSING:
            return False
        good = self.rollout.good if self.rollout else None
        return self.old_ones_serve or (good is not None and not same_engine(good.spec, self.deployment.spec))


def progress(stage: Stage) -> DeploymentStatus:
    phase, message = _verdict(stage)
    if stage.outcome is Outcome.ROLLED_BACK:
        message = "; ".join(filter(None, [_rolled_back(stage), message]))
    return DeploymentStatus(phase=phase, ready=stage.ready, wanted=stage.wanted, message=message, outcome=stage.outcome)


def _verdict(stage: Stage) -> tuple[DeploymentPhase, str]:
    if stage.wanted == 0:
        return ("draining", _waits(stage.outdated)) if stage.outdated else ("stopped", "it has 0 replicas")
    if failed := [replica for replica in stage.current if replica.phase is Phase.FAILED]:
        return ("progressing" if stage.may_come_back else "failed"), _said(failed[0])
    if stage.refusal is not None and stage.refusal.waits_for:
        return "progressing", f"{stage.refusal.missing} without a place yet: waits for {stage.refusal.waits_for}"
    if stage.refusal is not None:
        return "refused", _refused(stage, stage.refusal)
    if pending := [replica for replica in stage.current if replica.phase is not Phase.READY]:
        return "progressing", _said(pending[0])
    if len(stage.current) < stage.wanted:
        return "progressing", _waits(stage.outdated) or "waiting for the scheduler"
    return "ready", _unverified(stage.current)


def _rolled_back(stage: Stage) -> str:
    rollout = stage.rollout
    if rollout is None or rollout.good is None:
        return ""
    reason = rollout.reason.rstrip(".")
    return f"generation {rollout.generation} was rolled back: {reason}; generation {rollout.good.generation} runs"


def _said(replica: ReplicaView) -> str:
    if replica.phase is None:
        waiting = "waiting for its agent" if replica.node_alive else "its node is not connected"
        return f"{replica.id} on {replica.node}: {waiting}"
    return f"{replica.id} on {replica.node}: {replica.message or replica.phase}"


def _refused(stage: Stage, refusal: Refusal) -> str:
    reasons = refusal.told or NO_NODE
    if stage.old_ones_serve:
        return f"the old replicas serve on, {refusal.missing} new without a place: {reasons}"
    return f"{refusal.missing} without a place: {reasons}"


def _waits(outdated: Sequence[ReplicaView]) -> str:
    """What must happen before the outdated ones are replaced or gone."""
    for replica in outdated:
        if not replica.node_alive:
            return f"{replica.id} waits for node {replica.node}, which is not connected"
    for replica in outdated[:1]:
        doing = "drains" if replica.intent is Intent.DRAIN else "is to be replaced"
        return f"{replica.id} {doing} on {replica.node}"
    return ""


def _unverified(current: Sequence[ReplicaView]) -> str:
    lost = sorted({replica.node for replica in current if not replica.node_alive and replica.intent is Intent.SERVE})
    return f"last known state: node {', '.join(lost)} is not connected" if lost else ""
