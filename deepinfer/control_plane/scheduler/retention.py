"""What becomes of a placement that exists, before anything is replaced. Pure.

Draining is one-way: an engine told to drain refuses requests from then on, so a replica that is wanted again gets
another slot, or this one when it is gone.
"""

from __future__ import annotations

from collections.abc import Iterator

from deepinfer.control_plane.scheduler.identity import placement_id
from deepinfer.control_plane.scheduler.sight import Sight
from deepinfer.fleet.resources import Intent, Placement


def retained(sight: Sight) -> Iterator[Placement]:
    """The existing placements as they should be from now on, without those that are done."""
    serving: set[str] = set()
    newest_first = sorted(sight.fleet.placements, key=lambda p: (p.id, -p.epoch, p.node))
    for placement in newest_first:
        if placement.deployment in sight.unreadable_deployments:
            if placement.intent is Intent.SERVE or not sight.is_gone(placement):
                yield placement
            continue
        if sight.has_stopped(placement):
            continue  # it may have a new place at once
        wanted = _wanted(placement, sight) if placement.id not in serving else draining(placement, "it is elsewhere")
        if wanted.intent is Intent.SERVE:
            serving.add(wanted.id)
            wanted = _above_what_ran(wanted, sight)
        elif sight.is_gone(wanted):
            continue
        yield wanted


def draining(placement: Placement, why: str) -> Placement:
    """A placement that drains keeps its first reason."""
    if placement.intent is Intent.DRAIN:
        return placement
    return placement.model_copy(update={"intent": Intent.DRAIN, "why": why})


def _wanted(placement: Placement, sight: Sight) -> Placement:
    deployment = sight.deployments.get(placement.deployment)
    if deployment is None or placement.id != placement_id(deployment, placement.replica):
        return draining(placement, "its deployment is deleted")
    if sight.is_lost(placement):
        return draining(placement, f"node {placement.node} is lost")
    return placement


def _above_what_ran(placement: Placement, sight: Sight) -> Placement:
    """Its agent tells of a newer epoch only after an old backup of the store was restored: what that one runs is not
    known here, so it is followed by an epoch of its own, and is never taken for this one."""
    newest = sight.newest_told.get(placement.id, 0)
    return placement.model_copy(update={"epoch": newest + 1}) if newest > placement.epoch else placement
