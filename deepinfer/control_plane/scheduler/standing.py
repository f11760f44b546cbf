"""How every deployment stands, as conditions. Pure.

A condition is written anew only when it changes, so its words hold no figures that move while replicas start.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from deepinfer.control_plane.scheduler.identity import placement_id
from deepinfer.control_plane.scheduler.sight import Sight
from deepinfer.fleet.conditions import Aspect, Condition, Conditions
from deepinfer.fleet.resources import Deployment, Intent, Phase, Placement, Refusal
from deepinfer.fleet.rollout import Outcome, Rollout

_LONGEST_MESSAGE = 500


@dataclass(frozen=True)
class Standing:
    """All that the conditions of one deployment are made from."""

    deployment: Deployment
    serving: tuple[Placement, ...]  # of whatever generation
    refusal: Refusal | None
    rollout: Rollout | None
    sight: Sight

    def conditions(self) -> Iterator[tuple[Aspect, bool, str, str]]:
        """Aspect, whether it holds, reason and message."""
        yield (Aspect.ACCEPTED, *self._accepted())
        yield (Aspect.SCHEDULED, *self._scheduled())
        yield (Aspect.PROGRESSING, *self._progressing())
        yield (Aspect.AVAILABLE, *self._available())
        yield (Aspect.DEGRADED, *self._degraded())

    @cached_property
    def _ready(self) -> int:
        return sum(map(self.sight.is_ready, self.serving))

    @property
    def _is_stuck(self) -> bool:
        """A rollout has its deadline for that; afterwards nothing changes by itself."""
        runs = self.rollout is not None and self.rollout.outcome is Outcome.PROGRESSING
        has_no_place = self.refusal is not None and not self.refusal.waits_for
        return has_no_place and not runs and self._ready == len(self.serving)

    def _accepted(self) -> tuple[bool, str, str]:
        rollout = self.rollout
        if rollout is None or rollout.outcome is not Outcome.ROLLED_BACK or rollout.good is None:
            return True, "Accepted", ""
        what = f"generation {rollout.generation} was rolled back ({rollout.reason.rstrip('.')})"
        return False, "RolledBack", f"{what}; generation {rollout.good.generation} runs"

    def _scheduled(self) -> tuple[bool, str, str]:
        if self.refusal is None:
            return True, "Placed", ""
        if self.refusal.waits_for:
            return False, "Waiting", f"waits for {self.refusal.waits_for}"
        return False, "NoRoom", self.refusal.told or "no node is connected"

    def _progressing(self) -> tuple[bool, str, str]:
        asked = self.sight.deployments[self.deployment.name]
        if self.rollout is not None and self.rollout.outcome is Outcome.STALLED:
            return False, "Stalled", self.rollout.reason
        if self._is_stuck:
            return False, "NoRoom", "what there is serves, and nothing more has a place"
        if self.sight.outdated_generations(self.serving, asked):
            return True, "Replacing", "replicas of an earlier generation are being replaced"
        move = self.sight.wants_it_elsewhere if len(self.serving) > asked.spec.replicas else self.sight.must_leave
        leaving = sorted({why for p in self.serving if (why := move(p))})
        if leaving:
            return True, "Moving", "; ".join(leaving)
        if len(self.serving) == asked.spec.replicas == self._ready:
            return False, "Complete", ""
        return True, "Starting", "replicas are not ready yet"

    def _available(self) -> tuple[bool, str, str]:
        spec = self.sight.deployments[self.deployment.name].spec
        ready = self._ready
        if spec.replicas == 0:
            return False, "NoReplicas", "it has 0 replicas"
        if ready >= max(1, spec.replicas - spec.rollout.max_unavailable):
            return True, "EnoughReady", ""
        return False, "TooFewReady" if ready else "NoneReady", "fewer replicas are ready than it is to have"

    def _degraded(self) -> tuple[bool, str, str]:
        if self.rollout is not None and self.rollout.outcome is Outcome.ROLLED_BACK:
            return True, "RolledBack", self.rollout.reason
        for placement in self.serving if self._ready < len(self.serving) else ():
            status = self.sight.fleet.status_of(placement)
            if status is not None and status.phase in (Phase.FAILED, Phase.RESTARTING):
                return True, "ReplicaFailed", f"{placement.id} on {placement.node} is {status.phase}"
        away = sorted({p.node for p in self.serving} - self.sight.verified.keys())
        if away:
            return True, "NodeAway", f"{', '.join(away)} is not connected; its engines may serve on"
        return False, "AllWell", ""


def standings(sight: Sight, now: str) -> tuple[Conditions, ...]:
    """Of every deployment that can be read, as of the time `now` for what is new. The others keep theirs."""
    fleet = sight.fleet
    before = {conditions.deployment: conditions for conditions in fleet.conditions}
    refusals = {refusal.deployment: refusal for refusal in fleet.refusals}
    rollouts = {rollout.deployment: rollout for rollout in fleet.rollouts}
    found = [c for c in fleet.conditions if c.deployment in sight.unreadable_deployments]
    for deployment in fleet.deployments:
        if deployment.name in sight.unreadable_deployments:
            continue
        own = sight.of_deployment.get(deployment.name, [])
        serving = tuple(p for p in own if p.intent is Intent.SERVE and p.id == placement_id(deployment, p.replica))
        rollout = rollouts.get(deployment.name)
        standing = Standing(deployment, serving, refusals.get(deployment.name), rollout, sight)
        found.append(_since(standing, before.get(deployment.name), now))
    return tuple(sorted(found, key=lambda conditions: conditions.deployment))


def _since(standing: Standing, before: Conditions | None, now: str) -> Conditions:
    """What held before keeps its time."""
    deployment = standing.deployment
    known = before.conditions if before and before.uid == deployment.uid else ()
    last = {condition.aspect: condition for condition in known}
    conditions = []
    for aspect, holds, reason, message in standing.conditions():
        old = last.get(aspect)
        text = message[:_LONGEST_MESSAGE]
        if old and (old.holds, old.reason, old.message) == (holds, reason, text):
            conditions.append(old)
            continue
        since = old.since if old and old.holds == holds else now
        conditions.append(Condition(aspect=aspect, holds=holds, reason=reason, message=text, since=since))
    return Conditions(
        deployment=deployment.name,
        uid=deployment.uid,
        generation=deployment.generation,
        conditions=tuple(conditions),
    )
