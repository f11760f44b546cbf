"""What writes would do: the same question put to the scheduler's own plan, and nothing is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import Request

from deepinfer.control_plane.management.aside import aside_of
from deepinfer.control_plane.management.consequences import consequences
from deepinfer.control_plane.management.dependencies import deployments_of, outlook_of, snapshot_now
from deepinfer.control_plane.management.deployments import Ask, Change
from deepinfer.control_plane.management.explanations import explanation_of
from deepinfer.control_plane.management.scheduling_views import DryRunList, DryRunView, ForeseenChangeView
from deepinfer.control_plane.scheduler.sight import Outlook
from deepinfer.fleet.snapshot import Snapshot


async def dry_run_of(request: Request, name: str, ask: Ask) -> DryRunView:
    (change,) = await deployments_of(request).would_be({name: ask})
    fleet = await snapshot_now(request)
    return await aside_of(request)(_dry_run, fleet, change, outlook_of(request, fleet))


async def dry_run_of_all(request: Request, asks: Mapping[str, Ask]) -> DryRunList:
    changes = await deployments_of(request).would_be(asks)
    fleet = await snapshot_now(request)
    about = frozenset(asks)
    foreseen = await aside_of(request)(consequences, fleet, _with(fleet, changes), about, outlook_of(request, fleet))
    return DryRunList(data=tuple(ForeseenChangeView(**_told(change)) for change in changes), foreseen=foreseen)


def _dry_run(fleet: Snapshot, change: Change, outlook: Outlook) -> DryRunView:
    name, then = change.after.name, _with(fleet, [change])
    return DryRunView(
        **_told(change),
        foreseen=consequences(fleet, then, frozenset([name]), outlook),
        explanation=explanation_of(then, name, outlook),
    )


def _told(change: Change) -> dict[str, Any]:
    after = change.after
    return {"name": after.name, "generation": after.generation, "changes": change.is_one, "spec": after.spec}


def _with(fleet: Snapshot, changes: Sequence[Change]) -> Snapshot:
    known = {deployment.name: deployment for deployment in fleet.deployments}
    known |= {change.after.name: change.after for change in changes}
    return fleet.but(deployments=tuple(known[name] for name in sorted(known)))
