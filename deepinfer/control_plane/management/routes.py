"""The management API's paths of what is wanted (deployments) and what runs (replicas)."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import StreamingResponse

from deepinfer.control_plane.management import views
from deepinfer.control_plane.management.admission import admitted, admitted_all, checked_name
from deepinfer.control_plane.management.dependencies import (
    Body,
    DeploymentName,
    DryRun,
    Fleet,
    LargeBody,
    Writes,
    deployments_of,
    fleet_now,
)
from deepinfer.control_plane.management.deployments import amendment, creation, replacement
from deepinfer.control_plane.management.dry_runs import dry_run_of, dry_run_of_all
from deepinfer.control_plane.management.replica_logs import LogRequest, log_of
from deepinfer.control_plane.management.request_schemas import ALL_DEPLOYMENTS, NEW_DEPLOYMENT, SPEC, SPEC_CHANGES
from deepinfer.control_plane.management.scheduling_views import DryRunList, DryRunView
from deepinfer.control_plane.openai_errors import NodeNotConnected
from deepinfer.fleet.resources import Node

router = APIRouter(prefix="/v1")
Shown = views.DeploymentView | DryRunView
FORESEEN: dict[str, Any] = {"model": DryRunView, "description": "What a dry run tells."}
CREATED: dict[str, Any] = {"model": views.DeploymentView, "description": "It is new."}
LOG: dict[str, Any] = {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "What was written."}


@router.get("/deployments", tags=["deployments"])
async def list_deployments(fleet: Fleet) -> views.DeploymentList:
    """Every deployment and how far it is."""
    return views.DeploymentList(data=fleet.deployments())


@router.post(
    "/deployments", tags=["deployments"], status_code=201, responses={200: FORESEEN}, openapi_extra=NEW_DEPLOYMENT
)
async def create_deployment(request: Request, response: Response, body: Body, dry_run: DryRun = False) -> Shown:
    """Run a model. The name, where none is given, is the last part of the model's. A name in use is refused (409)."""
    name, spec = admitted(body)
    if dry_run:
        response.status_code = 200
        return await dry_run_of(request, name, creation(spec))
    await deployments_of(request).change(name, creation(spec))
    return (await fleet_now(request)).deployment(name)


@router.put("/deployments", tags=["deployments"], openapi_extra=ALL_DEPLOYMENTS)
async def put_deployments(
    request: Request, body: LargeBody, dry_run: DryRun = False
) -> views.DeploymentList | DryRunList:
    """Create each of these or replace its whole spec, all in one write; others are left as they are."""
    asks = {name: replacement(spec) for name, spec in admitted_all(body).items()}
    if dry_run:
        return await dry_run_of_all(request, asks)
    await deployments_of(request).change_all(asks)
    fleet = await fleet_now(request)
    return views.DeploymentList(data=tuple(map(fleet.deployment, asks)))


@router.get("/deployments/{name}", tags=["deployments"])
async def get_deployment(name: DeploymentName, fleet: Fleet) -> views.DeploymentView:
    """One deployment, its replicas, and why those that are missing have no place."""
    return fleet.deployment(name)


@router.put("/deployments/{name}", tags=["deployments"], responses={201: CREATED}, openapi_extra=SPEC)
async def put_deployment(
    name: DeploymentName, request: Request, response: Response, body: Body, dry_run: DryRun = False
) -> Shown:
    """Create it (201) or replace its whole spec (200). Repeating the same request changes nothing."""
    checked, spec = admitted(body, checked_name(name))
    if dry_run:
        return await dry_run_of(request, checked, replacement(spec))
    change = await deployments_of(request).change(checked, replacement(spec))
    response.status_code = 201 if change.before is None else 200
    return (await fleet_now(request)).deployment(checked)


@router.patch("/deployments/{name}", tags=["deployments"], openapi_extra=SPEC_CHANGES)
async def patch_deployment(name: DeploymentName, request: Request, body: Body, dry_run: DryRun = False) -> Shown:
    """Replace the fields that are given, each as a whole; null gives a field its default again.

    What no engine needs to know (replicas, priority, where they may go) leaves running replicas alone; any other
    change replaces them, as `rollout` says.
    """
    if dry_run:
        return await dry_run_of(request, name, amendment(body))
    await deployments_of(request).change(name, amendment(body))
    return (await fleet_now(request)).deployment(name)


@router.delete("/deployments/{name}", tags=["deployments"], status_code=202)
async def delete_deployment(name: DeploymentName, writes: Writes) -> views.Deleted:
    """Run it no more. Its replicas finish what they are doing and then stop."""
    await writes.delete(name)
    return views.Deleted(name=name)


@router.get("/replicas", tags=["replicas"])
async def list_replicas(fleet: Fleet) -> views.ReplicaList:
    """Every replica, where it is, and what was last seen of it."""
    return views.ReplicaList(data=fleet.replicas())


@router.get("/replicas/{replica}/logs", tags=["replicas"], response_class=StreamingResponse, responses={200: LOG})
async def read_logs(
    replica: Annotated[str, Path(description="The replica's id.")],
    fleet: Fleet,
    tail: Annotated[int, Query(ge=0, le=2**32 - 1, description="Only the last lines; 0 is all.")] = 0,
    follow: Annotated[bool, Query(description="Go on with what is added.")] = False,
    previous: Annotated[bool, Query(description="Of the run before the last restart.")] = False,
) -> StreamingResponse:
    """What the engine of a replica wrote, from the node it runs on."""
    node = fleet.node_of(replica)
    if not isinstance(node, Node):
        raise NodeNotConnected(f"Node {node}, which has this log, is not connected; start its worker again.")
    pieces = log_of(node, LogRequest(replica, tail, follow, previous))
    await anext(pieces)
    return StreamingResponse(pieces, media_type="text/plain; charset=utf-8")
