"""Which stage lies where: tables for the rules, random histories of processes for the properties."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepinfer.control_plane.scheduler.layouts import layouts
from deepinfer.control_plane.scheduler.plan import plan, planned
from deepinfer.control_plane.scheduler.sight import Sight
from deepinfer.fleet import keys
from deepinfer.fleet.pipeline import Layout, PipelineState
from deepinfer.fleet.resources import Deployment, Device, Node, NodeSettings, Phase, Placement, ReplicaStatus
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


def test_nothing_is_decided_before_all_stages_are_there() -> None:
    fleet = fleet_of()
    assert decided(without_status(fleet, host(1))).layouts == ()
    assert decided(without_status(fleet, HEAD)).layouts == ()
    assert decided(with_state(fleet, HEAD, shape=None)).layouts == ()
    assert decided(with_state(fleet, host(0), endpoint="")).layouts == ()


def test_the_first_layout() -> None:
    layout = only(decided(fleet_of()))
    assert (layout.id, layout.head, layout.epoch, layout.number, layout.layers) == (HEAD, HEAD, 1, 1, (0, 2))
    assert seated(layout) == [(host(0), (2, 4)), (host(1), (4, 6))]
    assert layout.why == "6 layers as 2, 2, 2"


def test_a_model_that_does_not_fit_has_no_layout() -> None:
    assert decided(fleet_of(*(node(name, megabytes=15) for name in "abc"))).layouts == ()


def test_a_spare_is_seated_only_when_somebody_is_lost() -> None:
    fleet = decided(fleet_of(spares=1))
    before = only(fleet)
    assert len(before.seats) == 2
    after = only(decided(serving(fleet, lost=host(0))))
    assert (after.number, after.layers) == (2, before.layers)
    assert seated(after) == [(host(2), (2, 4)), (host(1), (4, 6))]
    assert after.avoided == (before.seats[0].endpoint,)
    assert after.why == f"{host(0)} on {before.seats[0].node} replaced"


def test_without_a_spare_the_layers_are_cut_anew_over_who_is_left_and_again_when_it_comes_back() -> None:
    fleet = decided(fleet_of())
    fleet = decided(serving(fleet, lost=host(0)))
    assert (only(fleet).number, only(fleet).layers, seated(only(fleet))) == (2, (0, 3), [(host(1), (3, 6))])
    fleet = decided(restarted(serving(fleet), host(0), boot=1))
    assert (only(fleet).number, only(fleet).layers) == (3, (0, 2))
    assert seated(only(fleet)) == [(host(0), (2, 4)), (host(1), (4, 6))]
    assert only(fleet).avoided == ()


def test_where_a_stage_was_lost_nobody_is_seated_until_it_is_another_process() -> None:
    fleet = decided(serving(decided(fleet_of(spares=1)), lost=host(0)))
    fleet = decided(serving(fleet, lost=host(1)))
    assert (only(fleet).number, seated(only(fleet))) == (3, [(host(2), (3, 6))])
    assert len(only(fleet).avoided) == 2
    fleet = decided(restarted(serving(fleet), host(1), boot=1))
    assert seated(only(fleet)) == [(host(1), (2, 4)), (host(2), (4, 6))]
    assert len(only(fleet).avoided) == 1


def test_what_was_lost_in_an_older_layout_is_lost_no_more() -> None:
    """The head's word is of the layout that it serves, not of the one that was decided meanwhile."""
    fleet = decided(serving(decided(fleet_of(spares=1)), lost=host(0)))
    assert layouts(Sight(fleet)) == fleet.layouts
    assert decided(with_state(fleet, HEAD, lost=host(1))).layouts == fleet.layouts


@pytest.mark.parametrize("spares", [0, 1])
def test_the_host_of_a_drained_node_is_replaced(spares: int) -> None:
    fleet = serving(decided(fleet_of(spares=spares)))
    drained = where(fleet, host(0))
    fleet = decided(fleet.but(node_settings=(NodeSettings(node=drained, drain=True),)))
    assert host(0) not in {seat.placement for seat in only(fleet).seats}
    assert only(fleet).number == 2


def test_a_host_that_drains_is_replaced() -> None:
    fleet = serving(decided(fleet_of(spares=1)))
    going = tuple(p.model_copy(update={"intent": "drain"}) if p.id == host(1) else p for p in fleet.placements)
    assert seated(only(decided(fleet.but(placements=going)))) == [(host(0), (2, 4)), (host(2), (4, 6))]


@pytest.mark.parametrize("silent", [0, 1, 2], ids=["the head's", "the first host's", "the second host's"])
def test_a_node_that_only_lost_its_lease_changes_nothing(silent: int) -> None:
    """What serves goes on without its agent; if it does not, the head says so."""
    fleet = serving(decided(fleet_of(spares=1)))
    missing = where(fleet, [HEAD, host(0), host(1)][silent])
    assert decided(without_node(fleet, missing)).layouts == fleet.layouts
    assert decided(fleet.but(nodes=())).layouts == fleet.layouts


def test_a_stage_on_a_node_that_is_not_there_is_replaced_once_the_head_misses_it() -> None:
    fleet = serving(decided(fleet_of(spares=1)), lost=host(0))
    fleet = decided(without_node(fleet, where(fleet, host(0))))
    assert seated(only(fleet)) == [(host(2), (2, 4)), (host(1), (4, 6))]


def test_two_replicas_share_no_process() -> None:
    fleet = decided(fleet_of(replicas=2, spares=1))
    processes = Counter(p for layout in fleet.layouts for p in (layout.head, *(s.placement for s in layout.seats)))
    assert len(fleet.layouts) == 2
    assert set(processes.values()) == {1}
    fleet = decided(serving(fleet, lost=fleet.layouts[0].seats[0].placement))
    processes = Counter(p for layout in fleet.layouts for p in (layout.head, *(s.placement for s in layout.seats)))
    assert set(processes.values()) == {1}


def raised(fleet: Snapshot) -> Snapshot:
    """The replica's own placement is of another epoch, whose process is not up yet."""
    placements = tuple(p.model_copy(update={"epoch": 2}) if p.id == HEAD else p for p in fleet.placements)
    return without_status(fleet, HEAD).but(placements=placements)


def test_a_replica_of_another_epoch_begins_with_a_higher_number() -> None:
    """Hosts that stay up obey no older one."""
    fleet = decided(serving(decided(fleet_of(spares=1)), lost=host(0)))
    fleet = decided(raised(fleet))
    fleet = decided(restarted(fleet, HEAD, boot=1))
    assert (only(fleet).epoch, only(fleet).number) == (2, 3)


def test_hosts_with_another_key_are_not_seated() -> None:
    keyed = [node("a"), node("b"), node("c", key="other"), node("d")]
    fleet = decided(fleet_of(*keyed, spares=1))
    keys_of = {one.name: one.pipeline_key for one in fleet.nodes}
    layout = only(fleet)
    assert len(layout.seats) == 2
    assert len({keys_of[layout.node], *(keys_of[seat.node] for seat in layout.seats)}) == 1


def test_hosts_of_another_spec_are_not_seated() -> None:
    """They would load another model's layers."""
    fleet = fleet_of(spares=1)
    other = fleet.placements[-1].spec.model_copy(update={"model": "another"})
    changed = tuple(p.model_copy(update={"spec": other}) if p.id == host(0) else p for p in fleet.placements)
    layout = only(decided(fleet.but(placements=changed)))
    assert [seat.placement for seat in layout.seats] == [host(1), host(2)]


@pytest.mark.parametrize(
    ("counts", "layers"), [((1, 2, 3), [(0, 1), (1, 3), (3, 6)]), ((4, 1, 1), [(0, 4), (4, 5), (5, 6)])]
)
def test_layers_told_by_hand(counts: tuple[int, ...], layers: list[tuple[int, int]]) -> None:
    fleet = decided(fleet_of(layers=counts))
    assert [only(fleet).layers, *(seat.layers for seat in only(fleet).seats)] == layers
    fleet = decided(serving(fleet, lost=host(0)))
    assert [only(fleet).layers, *(seat.layers for seat in only(fleet).seats)] == [(0, 3), (3, 6)], "for another number"


def test_layers_told_by_hand_that_do_not_add_up_are_cut_as_if_nothing_was_told() -> None:
    assert only(decided(fleet_of(layers=(1, 2, 9)))).why == "6 layers as 2, 2, 2"


def test_of_a_deleted_deployment_the_layout_stays_as_long_as_its_replica_drains() -> None:
    fleet = serving(decided(fleet_of()))
    fleet = fleet.but(deployments=())
    fleet = decided(planned(fleet, plan(fleet)))
    assert only(fleet).number == 1
    assert decided(fleet.but(placements=())).layouts == ()


@pytest.mark.parametrize(
    "record", [keys.deployment("chat"), keys.placement("a", "x"), keys.status("a", HEAD), keys.node("a")]
)
def test_nothing_is_concluded_from_what_cannot_be_read(record: str) -> None:
    fleet = serving(decided(fleet_of(spares=1)))
    gone = {"deployments": ()} if record == keys.deployment("chat") else {}
    nodes = tuple(n for n in fleet.nodes if record != keys.node(n.name))
    broken = fleet.but(unreadable={record: "x: Field required"}, nodes=nodes, **gone)
    assert decided(broken).layouts == fleet.layouts


def test_nobody_is_left_but_the_head() -> None:
    """A pipeline has a stage after its head."""
    fleet = decided(fleet_of(stages=2))
    fleet = decided(serving(fleet, lost=host(0)))
    assert only(fleet).number == 1


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([3, 30, 60, 200, 1000]), min_size=3, max_size=5),
    st.lists(st.tuples(st.sampled_from(["lose", "restart", "silence", "down", "up"]), st.integers(0, 9)), max_size=15),
    st.integers(2, 4),
    st.integers(1, 2),
)
def test_properties_of_every_history(
    memory: list[int], events: list[tuple[str, int]], stages: int, replicas: int
) -> None:
    nodes = tuple(node(name, megabytes) for name, megabytes in zip("abcde", memory, strict=False))
    fleet = fleet_of(*nodes, stages=stages, spares=1, replicas=replicas)
    fleet = serving(decided(fleet))
    numbers: dict[str, int] = {}
    for boot, (what, which) in enumerate(events, 1):
        fleet = decided(after(fleet, nodes, (what, which), boot))
        for layout in fleet.layouts:
            check_whole(layout)
            assert layout.number >= numbers.get(layout.id, 0)
            numbers[layout.id] = layout.number
        taken = Counter(p for layout in fleet.layouts for p in (layout.head, *(s.placement for s in layout.seats)))
        assert set(taken.values()) <= {1}, "nobody is seated twice"
        fleet = serving(fleet)
        assert layouts(Sight(fleet)) == fleet.layouts, "it comes to rest"


def check_whole(layout: Layout) -> None:
    """Every layer once, in order."""
    cuts = [layout.layers, *(seat.layers for seat in layout.seats)]
    assert (cuts[0][0], cuts[-1][1]) == (0, SHAPE.layers)
    assert all(stop == start for (_, stop), (start, _) in pairwise(cuts))
    assert all(start < stop for start, stop in cuts)
    assert layout.seats


def after(fleet: Snapshot, nodes: tuple[Node, ...], event: tuple[str, int], boot: int) -> Snapshot:
    """What a network, a machine or a head does."""
    what, which = event
    placement = fleet.placements[which % len(fleet.placements)].id if fleet.placements else ""
    name = nodes[which % len(nodes)].name
    match what:
        case "lose":
            return serving(fleet, lost=placement)
        case "restart" if placement:
            return restarted(fleet, placement, boot)
        case "silence":
            return without_status(fleet, placement)
        case "down":
            return without_node(fleet, name)
    return fleet.but(nodes=tuple(n for n in nodes if n.name == name or n in fleet.nodes))
