"""How far the newest generation of each deployment got, and whether the one before must come back. Pure.

A generation is complete when as many of its replicas as wanted are ready. One that an engine refuses, that crashes
again and again, or that makes no progress for longer than its deadline, is rolled back when something good came before
it. Time is the leader's own steady clock; a new leader counts anew, so a deadline is never cut short.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from deepinfer.control_plane.scheduler.fit import same_engine
from deepinfer.control_plane.scheduler.identity import placement_id
from deepinfer.control_plane.scheduler.sight import Sight
from deepinfer.fleet.resources import Deployment, Intent, Placement, ReplicaStatus
from deepinfer.fleet.rollout import Good, Outcome, Rollout

CRASH_LOOP = 3  # failures in a row
_FINAL = (Outcome.ROLLED_BACK, Outcome.COMPLETE)


@dataclass(frozen=True)
class Pace:
    """What was last seen of a generation, and since when it has been so."""

    seen: tuple[str, int, int, int]  # uid, generation, placed, ready
    since: float
    due: float = math.inf  # when its deadline ends, while one runs


@dataclass(frozen=True)
class Verdicts:
    """The rollouts there should be, and what to remember for the next look."""

    rollouts: tuple[Rollout, ...]
    paces: Mapping[str, Pace]


def judged(sight: Sight, paces: Mapping[str, Pace], now: float) -> Verdicts:
    """Deployments that cannot be read keep what is written of them."""
    fleet = sight.fleet
    before = {rollout.deployment: rollout for rollout in fleet.rollouts}
    found = [r for r in fleet.rollouts if r.deployment in sight.unreadable_deployments]
    remembered = {}
    for deployment in fleet.deployments:
        if deployment.name in sight.unreadable_deployments:
            continue
        known = before.get(deployment.name)
        known = known if known and known.uid == deployment.uid else None
        if known and known.generation == deployment.generation and known.outcome in _FINAL:
            found.append(known)
            continue
        replicas = tuple(_of_this_generation(deployment, sight))
        pace = _pace(deployment, replicas, sight, paces.get(deployment.name), now)
        rollout = _rollout(deployment, known, replicas, sight, now - pace.since)
        runs = rollout.outcome is Outcome.PROGRESSING
        due = pace.since + deployment.spec.rollout.deadline_seconds if runs else math.inf
        remembered[deployment.name] = replace(pace, due=due)
        found.append(rollout)
    return Verdicts(tuple(sorted(found, key=lambda rollout: rollout.deployment)), remembered)


def _of_this_generation(deployment: Deployment, sight: Sight) -> Iterator[Placement]:
    for placement in sight.of_deployment.get(deployment.name, ()):
        is_own = placement.id == placement_id(deployment, placement.replica)
        if is_own and placement.intent is Intent.SERVE and not sight.is_outdated(placement, deployment):
            yield placement


def _pace(
    deployment: Deployment, replicas: tuple[Placement, ...], sight: Sight, before: Pace | None, now: float
) -> Pace:
    seen = (deployment.uid, deployment.generation, len(replicas), sum(map(sight.is_ready, replicas)))
    return before if before and before.seen == seen else Pace(seen, now)


def _rollout(
    deployment: Deployment, known: Rollout | None, replicas: tuple[Placement, ...], sight: Sight, stood: float
) -> Rollout:
    good = known.good if known else None
    if sum(map(sight.is_ready, replicas)) >= deployment.spec.replicas:
        if deployment.spec.replicas:
            good = Good(generation=deployment.generation, spec=deployment.spec)
        return _told(deployment, Outcome.COMPLETE, "", good)
    reason = _trouble(deployment, replicas, sight, stood)
    if not reason:
        return _told(deployment, Outcome.PROGRESSING, "", good)
    if good is None or same_engine(good.spec, deployment.spec):
        return _told(deployment, Outcome.STALLED, reason, good)
    return _told(deployment, Outcome.ROLLED_BACK, reason, good)


def _told(deployment: Deployment, outcome: Outcome, reason: str, good: Good | None) -> Rollout:
    return Rollout(
        deployment=deployment.name,
        uid=deployment.uid,
        generation=deployment.generation,
        outcome=outcome,
        reason=reason,
        good=good,
    )


def _trouble(deployment: Deployment, replicas: tuple[Placement, ...], sight: Sight, stood: float) -> str:
    """Why this generation will not become ready, as far as can be told; empty while it still may."""
    for placement in replicas:
        status = sight.fleet.status_of(placement)
        if status is not None and (hopeless := _hopeless(status)):
            return f"{placement.id} on {placement.node} {hopeless}: {status.message}"
    deadline = deployment.spec.rollout.deadline_seconds
    return f"no progress for {deadline} s" if stood >= deadline else ""


def _hopeless(status: ReplicaStatus) -> str:
    if status.given_up:
        return "is not tried again"
    return f"failed {CRASH_LOOP} times in a row" if status.failures >= CRASH_LOOP else ""
