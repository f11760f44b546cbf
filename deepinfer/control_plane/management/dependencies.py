"""What the functions behind the API's paths are given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import Depends, Path, Query, Request

from deepinfer.control_plane.management.aside import Aside, aside_of
from deepinfer.control_plane.management.deployments import Deployments
from deepinfer.control_plane.management.fleet_view import FleetView
from deepinfer.control_plane.management.json_body import json_object, json_object_if_any, large_json_object
from deepinfer.control_plane.management.node_settings import Nodes
from deepinfer.control_plane.scheduler.sight import Outlook
from deepinfer.fleet.mirror import Mirror
from deepinfer.fleet.snapshot import Snapshot


def mirror_of(request: Request) -> Mirror:
    connected: Callable[[], Mirror] = request.app.state.mirror
    return connected()


async def snapshot_now(request: Request) -> Snapshot:
    """With what this process wrote, so that a client sees what it has just asked for; as last known, if the store is
    away."""
    return await mirror_of(request).latest()


def outlook_of(request: Request, fleet: Snapshot) -> Outlook:
    """Who is lost, as the leader tells it, who may be another control plane; and who answers this one's gateway."""
    answering: Callable[[], frozenset[tuple[str, int]] | None] = request.app.state.answering
    return Outlook(frozenset(absence.node for absence in fleet.absences if absence.lost), answering())


async def fleet_now(request: Request) -> FleetView:
    return FleetView(await snapshot_now(request))


def deployments_of(request: Request) -> Deployments:
    return Deployments(mirror_of(request))


def nodes_of(request: Request) -> Nodes:
    return Nodes(mirror_of(request))


TheAside = Annotated[Aside, Depends(aside_of)]
TheMirror = Annotated[Mirror, Depends(mirror_of)]
Known = Annotated[Snapshot, Depends(snapshot_now)]
Fleet = Annotated[FleetView, Depends(fleet_now)]
Writes = Annotated[Deployments, Depends(deployments_of)]
NodeWrites = Annotated[Nodes, Depends(nodes_of)]
Body = Annotated[dict[str, Any], Depends(json_object)]
LargeBody = Annotated[dict[str, Any], Depends(large_json_object)]
BodyIfAny = Annotated[dict[str, Any], Depends(json_object_if_any)]
DeploymentName = Annotated[str, Path(description="The deployment's name.", examples=["chat"])]
NodeName = Annotated[str, Path(description="The node's name.", examples=["node-1"])]
DryRun = Annotated[bool, Query(description="Tell what would happen, and write nothing.")]
