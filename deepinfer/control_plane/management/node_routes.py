"""The management API's paths of where things run: nodes, what people decide about them, and better places."""

from __future__ import annotations

from fastapi import APIRouter, Request

from deepinfer.control_plane.management import node_settings, views
from deepinfer.control_plane.management.consequences import consequences, foreseen_replica
from deepinfer.control_plane.management.dependencies import (
    DryRun,
    Fleet,
    NodeName,
    NodeWrites,
    TheAside,
    TheMirror,
    fleet_now,
    nodes_of,
    outlook_of,
)
from deepinfer.control_plane.management.moves import asked_for, with_moves
from deepinfer.control_plane.management.scheduling_views import RebalanceView
from deepinfer.control_plane.scheduler.rebalancing import better_places

router = APIRouter(prefix="/v1", tags=["nodes"])


@router.get("/nodes")
async def list_nodes(fleet: Fleet) -> views.NodeList:
    """Every machine, what it offers, and what is placed there."""
    return views.NodeList(data=fleet.nodes())


@router.get("/nodes/{name}")
async def get_node(name: NodeName, fleet: Fleet) -> views.NodeView:
    """One machine."""
    return fleet.node(name)


@router.post("/nodes/{name}/cordon", name="cordon_node")
async def cordon(name: NodeName, request: Request) -> views.NodeView:
    """Nothing new goes there; what runs there stays."""
    return await _decided(request, name, node_settings.CORDON)


@router.post("/nodes/{name}/uncordon", name="uncordon_node")
async def uncordon(name: NodeName, request: Request) -> views.NodeView:
    """It takes replicas again: it is neither cordoned nor drained, nor called lost."""
    return await _decided(request, name, node_settings.UNCORDON)


@router.post("/nodes/{name}/drain", name="drain_node")
async def drain(name: NodeName, request: Request) -> views.NodeView:
    """What runs there is replaced elsewhere, then stopped; nothing new goes there."""
    return await _decided(request, name, node_settings.DRAIN)


@router.post("/nodes/{name}/lost", name="node_is_lost")
async def lost(name: NodeName, request: Request) -> views.NodeView:
    """It is not connected and will not come back: its replicas are replaced at once.

    Should it come back, what runs there is stopped, and it takes nothing until it is uncordoned.
    """
    return await _decided(request, name, node_settings.LOST)


@router.delete("/nodes/{name}", name="forget_node")
async def forget(name: NodeName, nodes: NodeWrites) -> views.NodeForgotten:
    """Keep nothing more of a node that was called lost, or that had nothing to run."""
    await nodes.forget(name)
    return views.NodeForgotten(name=name)


@router.post("/rebalance")
async def rebalance(request: Request, mirror: TheMirror, aside: TheAside, dry_run: DryRun = False) -> RebalanceView:
    """Move replicas that would now get a better place; each is replaced before it stops. What runs well is left."""
    fleet = await mirror.latest()
    outlook = outlook_of(request, fleet)
    moves = await aside(better_places, fleet, outlook)
    placed = {(placement.id, placement.epoch): placement for placement in fleet.placements}
    moved = [placed[move.placement, move.epoch] for move in moves]
    about = frozenset(placement.deployment for placement in moved)
    foreseen = await aside(consequences, fleet, with_moves(fleet, moves), about, outlook)
    if not dry_run:
        await asked_for(mirror, moves)
    return RebalanceView(
        dry_run=dry_run, moves=tuple(foreseen_replica(placement, about) for placement in moved), foreseen=foreseen
    )


async def _decided(request: Request, name: str, decision: node_settings.Decision) -> views.NodeView:
    await nodes_of(request).decide(name, decision)
    return (await fleet_now(request)).node(name)
