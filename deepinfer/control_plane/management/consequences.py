"""What a change of the fleet comes to when all engines become ready: what stays, starts, stops, has no place. Pure.

What would happen to other deployments anyway is not told, only what happens to them because of the change.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from deepinfer.control_plane.management.scheduling_views import ForeseenReplicaView, ForeseenView, RefusalView
from deepinfer.control_plane.scheduler.foresight import MOST_STEPS, foreseen
from deepinfer.control_plane.scheduler.plan import Plan
from deepinfer.control_plane.scheduler.sight import Outlook
from deepinfer.fleet.resources import Intent, Placement, Refusal
from deepinfer.fleet.snapshot import Snapshot

Key = tuple[str, str, int]
MOST_WORK = 50_000
"""Steps of a large fleet take long, and whoever asks waits: so many times a placement is looked at."""


def consequences(before: Snapshot, after: Snapshot, about: frozenset[str], outlook: Outlook) -> ForeseenView:
    """`after` is the fleet with the change, which concerns the deployments `about`."""
    anyway = foreseen(before, outlook).plan
    most = max(8, min(MOST_STEPS, MOST_WORK // (1 + len(after.placements))))
    course = foreseen(after, outlook, most)
    now, then = _serving(before.placements), _serving(course.plan.placements)
    expected = _serving(anyway.placements)
    started = [p for key, p in then.items() if key not in now and (p.deployment in about or key not in expected)]
    stopped = [p for key, p in now.items() if key not in then and (p.deployment in about or key in expected)]
    named = {deployment.name for deployment in before.deployments}
    made_up = _made_up(after, named)
    return ForeseenView(
        kept=tuple(foreseen_replica(p, named) for key, p in then.items() if key in now and p.deployment in about),
        started=tuple(foreseen_replica(p, named) for p in started),
        stopped=tuple(
            foreseen_replica(p, named, course.reasons.get(_key(p), "it is replaced in place")) for p in stopped
        ),
        refused=tuple(
            _refused(refusal, made_up)
            for refusal in course.plan.refusals
            if refusal.deployment in about or _is_new(refusal, anyway)
        ),
        is_final=course.is_final,
    )


def _serving(placements: tuple[Placement, ...]) -> dict[Key, Placement]:
    return {_key(placement): placement for placement in placements if placement.intent is Intent.SERVE}


def _key(placement: Placement) -> Key:
    return placement.id, placement.node, placement.epoch


def _is_new(refusal: Refusal, anyway: Plan) -> bool:
    return all((r.deployment, r.missing) != (refusal.deployment, refusal.missing) for r in anyway.refusals)


def _made_up(after: Snapshot, named: Collection[str]) -> dict[str, str]:
    """How the ids of replicas begin whose deployment does not exist, so that it will have another uid; and its name."""
    return {f"{d.name}-{d.uid}-": f"{d.name}-" for d in after.deployments if d.name not in named}


def _refused(refusal: Refusal, made_up: Mapping[str, str]) -> RefusalView:
    def told(text: str) -> str:
        for beginning, name in made_up.items():
            text = text.replace(beginning, name)
        return text

    return RefusalView(
        deployment=refusal.deployment,
        missing=refusal.missing,
        reasons={node: told(reason) for node, reason in refusal.reasons.items()},
        waits_for=told(refusal.waits_for),
    )


def foreseen_replica(placement: Placement, named: Collection[str], why: str = "") -> ForeseenReplicaView:
    """`named`: the deployments that exist."""
    return ForeseenReplicaView(
        deployment=placement.deployment,
        id=placement.id if placement.deployment in named else None,
        replica=placement.replica,
        node=placement.node,
        devices=placement.devices,
        why=why,
    )
