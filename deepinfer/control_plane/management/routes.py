"""The management API's paths: what is wanted (deployments), what runs (replicas) and where (nodes)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import StreamingResponse

from deepinfer.control_plane.management import views
from deepinfer.control_plane.management.admission import admitted, checked_name
from deepinfer.control_plane.management.deployments import Deployments
from deepinfer.control_plane.management.fleet_view import FleetView
from deepinfer.control_plane.management.json_body import json_object
from deepinfer.control_plane.management.replica_logs import LogRequest, log_of
from deepinfer.control_plane.management.request_schemas import NEW_DEPLOYMENT, SPEC, SPEC_CHANGES
from deepinfer.control_plane.openai_errors import NodeNotConnected
from deepinfer.fleet import keys
from deepinfer.fleet.resources import Node
from deepinfer.fleet.snapshot import snapshot_of
from deepinfer.fleet.store import EtcdStore

router = APIRouter(prefix="/v1")


async def fleet_now(request: Request) -> FleetView:
    """Read anew for every request, so that a client sees what it has just written."""
    return FleetView(snapshot_of((await _store(request).read(keys.FLEET)).values))


def deployments_of(request: Request) -> Deployments:
    return Deployments(_store(request))


def _store(request: Request) -> EtcdStore:
    connected: Callable[[], EtcdStore] = request.app.state.store
    return connected()


Fleet = Annotated[FleetView, Depends(fleet_now)]
Writes = Annotated[Deployments, Depends(deployments_of)]
Body = Annotated[dict[str, Any], Depends(json_object)]


@router.get("/deployments", tags=["deployments"])
async def list_deployments(fleet: Fleet) -> views.DeploymentList:
    """Every deployment and how far it is."""
    return views.DeploymentList(data=fleet.deployments())


@router.post("/deployments", tags=["deployments"], status_code=201, openapi_extra=NEW_DEPLOYMENT)
async def create_deployment(request: Request, body: Body, writes: Writes) -> views.DeploymentView:
    """Run a model. The name, where none is given, is the last part of the model's. A name in use is refused (409)."""
    name, spec = admitted(body)
    await writes.create(name, spec)
    return (await fleet_now(request)).deployment(name)


@router.get("/deployments/{name}", tags=["deployments"])
async def get_deployment(name: str, fleet: Fleet) -> views.DeploymentView:
    """One deployment, its replicas, and why those that are missing have no place."""
    return fleet.deployment(name)


@router.put("/deployments/{name}", tags=["deployments"], openapi_extra=SPEC)
async def put_deployment(
    name: str, request: Request, response: Response, body: Body, writes: Writes
) -> views.DeploymentView:
    """Create it (201) or replace its whole spec (200). Repeating the same request changes nothing."""
    checked, spec = admitted(body, checked_name(name))
    response.status_code = 201 if await writes.put(checked, spec) else 200
    return (await fleet_now(request)).deployment(checked)


@router.patch("/deployments/{name}", tags=["deployments"], openapi_extra=SPEC_CHANGES)
async def patch_deployment(name: str, request: Request, body: Body, writes: Writes) -> views.DeploymentView:
    """Replace the fields that are given, each as a whole; null gives a field its default again.

    A change of `replicas` alone leaves running replicas alone; any other change starts them again.
    """
    await writes.amend(name, body)
    return (await fleet_now(request)).deployment(name)


@router.delete("/deployments/{name}", tags=["deployments"], status_code=202)
async def delete_deployment(name: str, writes: Writes) -> views.Deleted:
    """Run it no more. Its replicas finish what they are doing and then stop."""
    await writes.delete(name)
    return views.Deleted(name=name)


@router.get("/replicas", tags=["replicas"])
async def list_replicas(fleet: Fleet) -> views.ReplicaList:
    """Every replica, where it is, and what was last seen of it."""
    return views.ReplicaList(data=fleet.replicas())


@router.get("/replicas/{replica}/logs", tags=["replicas"], response_class=StreamingResponse)
async def read_logs(
    replica: str,
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


@router.get("/nodes", tags=["nodes"])
async def list_nodes(fleet: Fleet) -> views.NodeList:
    """Every machine, what it offers, and what is placed there."""
    return views.NodeList(data=fleet.nodes())
