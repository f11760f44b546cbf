"""The management API's paths of a deployment's generations, and of the reasons for where its replicas are."""

from __future__ import annotations

import json

from fastapi import APIRouter, Request

from deepinfer.control_plane.management.dependencies import (
    BodyIfAny,
    DeploymentName,
    DryRun,
    Fleet,
    Known,
    TheAside,
    Writes,
    fleet_now,
    outlook_of,
)
from deepinfer.control_plane.management.deployments import undoing
from deepinfer.control_plane.management.dry_runs import dry_run_of
from deepinfer.control_plane.management.explanations import explanation_of
from deepinfer.control_plane.management.request_schemas import UNDO
from deepinfer.control_plane.management.routes import Shown
from deepinfer.control_plane.management.scheduling_views import (
    ExplanationView,
    RevisionList,
    RevisionView,
    RolloutView,
)
from deepinfer.fleet.errors import InvalidRequest

router = APIRouter(prefix="/v1/deployments/{name}", tags=["rollouts"])


@router.get("/rollout")
async def get_rollout(name: DeploymentName, fleet: Fleet) -> RolloutView:
    """How far its newest generation is."""
    return fleet.rollout(name)


@router.get("/revisions")
async def list_revisions(name: DeploymentName, writes: Writes) -> RevisionList:
    """Its generations, the newest ten of them and the last good one."""
    history = await writes.history(name)
    newest = history.existing.generation
    return RevisionList(
        data=tuple(
            RevisionView(
                **revision.model_dump(include={"generation", "created_at", "cause"}),
                is_newest=revision.generation == newest,
                is_good=revision.generation == history.good_generation,
                spec=revision.spec,
            )
            for revision in history.kept.values()
        )
    )


@router.post("/rollout/undo", openapi_extra=UNDO)
async def undo_rollout(
    name: DeploymentName, request: Request, body: BodyIfAny, writes: Writes, dry_run: DryRun = False
) -> Shown:
    """An earlier revision's spec as a new generation, with as many replicas as now.

    Without `to`: what runs instead of a generation that was rolled back, or else the one before it that differs.
    """
    ask = undoing(_generation(body))
    if dry_run:
        return await dry_run_of(request, name, ask)
    await writes.change(name, ask)
    return (await fleet_now(request)).deployment(name)


@router.get("/explain", name="explain_deployment")
async def explain(name: DeploymentName, request: Request, fleet: Known, aside: TheAside) -> ExplanationView:
    """Why its replicas are where they are, and what each node and device says to one more."""
    return await aside(explanation_of, fleet, name, outlook_of(request, fleet))


def _generation(body: dict[str, object]) -> int | None:
    for field in body:
        if field != "to":
            raise InvalidRequest(f"Unknown field {json.dumps(field[:64])}; the only one is to.", param=field)
    to = body.get("to")
    if to is not None and (not isinstance(to, int) or isinstance(to, bool) or to < 1):
        raise InvalidRequest(f"to must be a generation, 1 or more, not {json.dumps(to)[:80]}.", param="to")
    return to
