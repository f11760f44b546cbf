"""Values of a fleet whose replicas are in stages, and what happens to their processes."""

from __future__ import annotations

from typing import Any

from deepinfer.control_plane.scheduler.layouts import layouts
from deepinfer.control_plane.scheduler.plan import plan, planned
from deepinfer.control_plane.scheduler.sight import Sight
from deepinfer.fleet.pipeline import Layout, PipelineState
from deepinfer.fleet.resources import Deployment, Device, Node, Phase, Placement, ReplicaStatus
from deepinfer.fleet.snapshot import Snapshot
from deepinfer.fleet.spec import DeploymentSpec
from tests.fleet_values import installed
from tests.planning_values import model

MB = 10**6
SHAPE = model(*[10 * MB] * 6)
HEAD = "chat-aaaaa-0"


def host(slot: int) -> str:
    return f"chat.stages-aaaaa-{slot}"


def node(name: str, megabytes: int = 1000, key: str = "k") -> Node:
    return Node(
        name=name,
        instance="i",
        agent_endpoint="127.0.0.1:1",
        devices=(Device(id="cpu", kind="cpu", name="CPU", memory_bytes=megabytes * MB),),
        engines=(installed("layer-shard"),),
        pipeline_key=key,
        version="0",
    )


def deployment(generation: int = 1, replicas: int = 1, max_model_len: int = 64, **pipeline: Any) -> Deployment:
    asked = {"model": "m", "engine": "layer-shard", "replicas": replicas, "max_model_len": max_model_len}
    spec = DeploymentSpec.model_validate({**asked, "pipeline": pipeline})
    return Deployment(name="chat", uid="aaaaa", generation=generation, created_at="2026-01-01T00:00:00Z", spec=spec)


def status(placement: Placement, boot: int = 0) -> ReplicaStatus:
    """Of a process that is up; each start of it listens elsewhere."""
    number = int(placement.id.rsplit("-", 1)[1]) + (1000 if ".stages" in placement.id else 0)
    state = PipelineState(endpoint=f"{placement.node}:{10_000 * (1 + boot) + number}", shape=SHAPE)
    return ReplicaStatus(id=placement.id, epoch=placement.epoch, node=placement.node, phase=Phase.READY, pipeline=state)


def fleet_of(*nodes: Node, stages: int = 3, spares: int = 0, replicas: int = 1, **more: Any) -> Snapshot:
    """All processes are placed and up; nothing is decided about layers."""
    wanted = deployment(replicas=replicas, stages=stages, spares=spares, **more)
    fleet = Snapshot(deployments=(wanted,), nodes=nodes or tuple(map(node, "abcd")))
    fleet = planned(fleet, plan(fleet))
    return fleet.but(statuses=tuple(status(p) for p in fleet.placements))


def decided(fleet: Snapshot) -> Snapshot:
    """What is decided stands."""
    after = fleet.but(layouts=layouts(Sight(fleet)))
    assert layouts(Sight(after)) == after.layouts
    return after


def rested(fleet: Snapshot) -> Snapshot:
    """What one replica leaves to the next, that one finds at the next look."""
    for _ in range(4):
        before, fleet = fleet.layouts, fleet.but(layouts=layouts(Sight(fleet)))
        if fleet.layouts == before:
            return fleet
    raise AssertionError("it does not come to rest")


def only(fleet: Snapshot) -> Layout:
    (layout,) = fleet.layouts
    return layout


def seated(layout: Layout) -> list[tuple[str, tuple[int, int]]]:
    return [(seat.placement, seat.layers) for seat in layout.seats]


def with_state(fleet: Snapshot, placement: str, **changes: Any) -> Snapshot:
    """A process tells something else of itself."""

    def told(one: ReplicaStatus) -> ReplicaStatus:
        if one.id != placement or one.pipeline is None:
            return one
        return one.model_copy(update={"pipeline": one.pipeline.model_copy(update=changes)})

    return fleet.but(statuses=tuple(map(told, fleet.statuses)))


def without_status(fleet: Snapshot, *placements: str) -> Snapshot:
    return fleet.but(statuses=tuple(one for one in fleet.statuses if one.id not in placements))


def serving(fleet: Snapshot, lost: str = "") -> Snapshot:
    """Heads have made their layouts so; one of them has lost a stage."""
    for layout in fleet.layouts:
        missed = lost if lost in {seat.placement for seat in layout.seats} else ""
        fleet = with_state(fleet, layout.head, serves=layout.id, number=layout.number, lost=missed)
    return fleet


def restarted(fleet: Snapshot, placement: str, boot: int) -> Snapshot:
    there = next(p for p in fleet.placements if p.id == placement)
    return fleet.but(statuses=(*without_status(fleet, placement).statuses, status(there, boot)))


def where(fleet: Snapshot, placement: str) -> str:
    return next(p.node for p in fleet.placements if p.id == placement)


def without_node(fleet: Snapshot, name: str) -> Snapshot:
    return fleet.but(nodes=tuple(one for one in fleet.nodes if one.name != name))
