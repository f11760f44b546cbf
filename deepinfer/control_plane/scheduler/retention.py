"""What becomes of a placement that exists. Pure.

Draining is one-way: an engine told to drain refuses requests from then on, so a replica that is wanted again gets a new
epoch once the old one is gone.
"""

from __future__ import annotations

from collections.abc import Iterator

from deepinfer.control_plane.scheduler.fit import same_engine, still_fits
from deepinfer.control_plane.scheduler.sight import Sight
from deepinfer.fleet.resources import Deployment, Intent, Placement


def retained(sight: Sight) -> Iterator[Placement]:
    """The existing placements as they should be from now on, without those that are done."""
    serving: set[str] = set()
    newest_first = sorted(sight.fleet.placements, key=lambda p: (p.id, -p.epoch, p.node))
    for placement in newest_first:
        if placement.deployment in sight.unreadable_deployments:
            yield placement
            continue
        if sight.has_stopped(placement):
            continue  # it may have a new place at once
        wanted = _wanted(placement, sight) if placement.id not in serving else _draining(placement)
        if wanted.intent is Intent.SERVE:
            serving.add(wanted.id)
        elif sight.is_gone(wanted):
            continue
        yield wanted


def placement_id(deployment: Deployment, replica: int) -> str:
    """The same replica of the same deployment has the same id wherever it is placed."""
    return f"{deployment.name}-{deployment.uid}-{replica}"


def next_epoch(deployment: Deployment, previous: int) -> int:
    """Above every epoch this replica had: one per generation at least, so even a forgotten one is not repeated."""
    return max(previous + 1, deployment.generation)


def _wanted(placement: Placement, sight: Sight) -> Placement:
    deployment = sight.deployments.get(placement.deployment)
    if placement.intent is Intent.DRAIN or deployment is None or not _counts(placement, deployment):
        return _draining(placement)
    if same_engine(placement.spec, deployment.spec):
        return placement
    return _with_new_spec(placement, deployment, sight)


def _counts(placement: Placement, deployment: Deployment) -> bool:
    """Whether it is one of the replicas the deployment asks for, and not of a deleted one of the same name."""
    is_its_own = placement.id == placement_id(deployment, placement.replica)
    return is_its_own and placement.replica < deployment.spec.replicas


def _with_new_spec(placement: Placement, deployment: Deployment, sight: Sight) -> Placement:
    """In place where its devices still do; otherwise it must be gone before its successor takes others."""
    node = sight.verified.get(placement.node)
    if node is None:
        return placement  # unverified: what serves there goes on serving until more is known
    if not still_fits(deployment.spec, node, placement.devices):
        return _draining(placement)
    changes = {
        "epoch": next_epoch(deployment, placement.epoch),
        "generation": deployment.generation,
        "spec": deployment.spec,
    }
    return placement.model_copy(update=changes)


def _draining(placement: Placement) -> Placement:
    return placement.model_copy(update={"intent": Intent.DRAIN})
