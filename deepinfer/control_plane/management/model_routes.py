"""The API as model servers have it: load, unload and swap a model, and the cluster on one page.

A model that is loaded is a deployment, named as `deepinfer deploy` names it; all that may be asked of one may be asked
here too.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import Field

from deepinfer.control_plane.management import node_routes
from deepinfer.control_plane.management.admission import admitted
from deepinfer.control_plane.management.cluster_status import ClusterStatusView, StoreStatusView, cluster_status
from deepinfer.control_plane.management.consequences import consequences
from deepinfer.control_plane.management.dependencies import (
    Body,
    DryRun,
    Fleet,
    TheAside,
    TheMirror,
    deployments_of,
    outlook_of,
    snapshot_now,
)
from deepinfer.control_plane.management.deployments import amendment, loading
from deepinfer.control_plane.management.dry_runs import dry_run_of
from deepinfer.control_plane.management.fleet_view import FleetView
from deepinfer.control_plane.management.model_loading import deployment_of_model, settled, text_of, without_wait
from deepinfer.control_plane.management.request_schemas import HOT_SWAP, LOAD, UNLOAD
from deepinfer.control_plane.management.scheduling_views import DryRunView, ForeseenView
from deepinfer.control_plane.management.views import DeploymentView, View
from deepinfer.fleet import keys
from deepinfer.fleet.errors import InvalidRequest

router = APIRouter(prefix="/api", tags=["model server"])


class ModelView(View):
    """A model, and the deployment that serves it."""

    name: str = Field(description="What a request's \"model\" may say; the model's own name does as well.")
    model: str
    changed: bool = Field(description="False: it was so already.")
    deployment: DeploymentView


class UnloadedView(View):
    """A deployment that runs no more, or would not."""

    name: str
    dry_run: bool
    foreseen: ForeseenView | None = Field(description="What that would come to, of a dry run.")


_READY: dict[str, Any] = {"model": ModelView | DryRunView, "description": "It is ready; or what a dry run tells."}
_FORESEEN: dict[str, Any] = {"model": UnloadedView, "description": "What a dry run tells."}


@router.get("/cluster/status")
async def get_cluster_status(mirror: TheMirror, fleet: Fleet) -> ClusterStatusView:
    """Nodes, devices, deployments, replicas, who leads, and how fresh all of this is."""
    leader = mirror.reading.entries.get(keys.LEADER)
    stale_since = mirror.stale_since.isoformat(timespec="seconds") if mirror.stale_since else None
    store = StoreStatusView(revision=mirror.revision, stale_since=stale_since, trouble=mirror.doubt)
    return cluster_status(fleet, mirror.known, leader.value if leader else None, store)


router.add_api_route("/cluster/rebalance", node_routes.rebalance, methods=["POST"], name="rebalance_cluster")


@router.post("/models/load", status_code=202, responses={200: _READY}, openapi_extra=LOAD)
async def load_model(
    request: Request, response: Response, body: Body, dry_run: DryRun = False
) -> ModelView | DryRunView:
    """Run a model: 202 while it is on its way, 200 once it is ready. What runs just so already is left as it is.

    One that runs otherwise is refused (409); hot-swap changes it.
    """
    fields, seconds = without_wait(body)
    name, spec = admitted(fields)
    if dry_run:
        response.status_code = 200
        return await dry_run_of(request, name, loading(spec))
    change = await deployments_of(request).change(name, loading(spec))
    return await _on_its_way(request, response, name, change.is_one, seconds)


@router.post("/models/unload", status_code=202, responses={200: _FORESEEN}, openapi_extra=UNLOAD)
async def unload_model(
    request: Request, response: Response, body: Body, aside: TheAside, dry_run: DryRun = False
) -> UnloadedView:
    """Run it no more, by its deployment's name or by its model's. Its replicas finish what they are doing first."""
    fleet = await snapshot_now(request)
    if len(body) != 1 or next(iter(body)) not in ("name", "model"):
        raise InvalidRequest('The body must be {"name": ...} or {"model": ...}.', param="name")
    name = text_of(body, "name") if "name" in body else deployment_of_model(text_of(body, "model"), fleet, "model")
    if not dry_run:
        await deployments_of(request).delete(name)
        return UnloadedView(name=name, dry_run=False, foreseen=None)
    FleetView(fleet).deployment(name)  # or it is told that there is none
    response.status_code = 200
    then = fleet.but(deployments=tuple(d for d in fleet.deployments if d.name != name))
    foreseen = await aside(consequences, fleet, then, frozenset([name]), outlook_of(request, fleet))
    return UnloadedView(name=name, dry_run=True, foreseen=foreseen)


@router.post("/models/hot-swap", status_code=202, responses={200: _READY}, openapi_extra=HOT_SWAP)
async def hot_swap_model(
    request: Request, response: Response, body: Body, dry_run: DryRun = False
) -> ModelView | DryRunView:
    """Another model under the same deployment's name: 202 while it is on its way, 200 once it has taken over.

    The new one starts beside the old one where there is room, and takes over when it answers: no request is lost.
    Where it does not work the old one comes back, as after any rollout.
    """
    fields, seconds = without_wait(body)
    name = deployment_of_model(text_of(fields, "from"), await snapshot_now(request), "from")
    to = text_of(fields, "to" if "to" in fields else "model")
    if fields.get("model", to) != to:
        raise InvalidRequest("to and model say the same thing; leave one of them out.", param="model")
    others = {field: value for field, value in fields.items() if field not in ("from", "to")}
    # Where the old one's files lie says nothing of the new one's.
    ask = amendment({"model_path": None, **others, "model": to})
    if dry_run:
        response.status_code = 200
        return await dry_run_of(request, name, ask)
    change = await deployments_of(request).change(name, ask)
    return await _on_its_way(request, response, name, change.is_one, seconds)


async def _on_its_way(request: Request, response: Response, name: str, changed: bool, seconds: float) -> ModelView:
    view = await settled(request, name, seconds)
    response.status_code = 200 if view.status.phase in ("ready", "stopped") else 202
    return ModelView(name=name, model=view.model, changed=changed, deployment=view)
