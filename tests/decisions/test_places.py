"""What people may say about places: priorities, labels, who may stand beside whom, cordons and drains."""

from __future__ import annotations

import dataclasses
from typing import Any

from deepinfer.control_plane.scheduler import fit
from deepinfer.control_plane.scheduler.foresight import foreseen, with_agents_work
from deepinfer.control_plane.scheduler.plan import plan, planned
from deepinfer.control_plane.scheduler.rebalancing import better_places
from deepinfer.fleet import keys
from deepinfer.fleet.resources import Intent, Node, NodeSettings
from deepinfer.fleet.snapshot import Snapshot
from tests.decisions.test_plan import deployment, node, running


def gpus(name: str, count: int) -> Node:
    return node(name, cuda=count, cpu=False)


def places(fleet: Snapshot) -> list[tuple[str, str, str]]:
    """Where everything is when all has come to rest."""
    return [(p.id, p.node, p.intent) for p in foreseen(fleet).plan.placements]


def with_one_more(fleet: Snapshot, priority: int, **spec: int) -> Snapshot:
    urgent = deployment("urgent", uid="uuuuu", priority=priority, **spec)
    return dataclasses.replace(fleet, deployments=(*fleet.deployments, urgent))


def test_a_higher_priority_takes_the_devices_of_the_lowest_and_no_more_than_it_needs() -> None:
    low, mid = deployment("low", uid="lllll", priority=-5), deployment("mid", uid="mmmmm", replicas=2)
    fleet = running((low, mid), (gpus("a", 3),))
    fleet = with_one_more(fleet, 9, tensor_parallel_size=2)
    told = plan(fleet)
    assert [(p.id, p.intent, p.why) for p in told.placements] == [
        ("low-lllll-0", "drain", "urgent of priority 9 takes its devices"),
        ("mid-mmmmm-0", "drain", "urgent of priority 9 takes its devices"),
        ("mid-mmmmm-1", "serve", ""),
    ]
    (waiting,) = (refusal for refusal in told.refusals if refusal.deployment == "urgent")
    assert waiting.waits_for == "low-lllll-0, mid-mmmmm-0 to drain on a"
    assert places(fleet) == [("mid-mmmmm-1", "a", "serve"), ("urgent-uuuuu-0", "a", "serve")]


def test_way_for_many_is_made_without_looking_at_every_node_for_each() -> None:
    fleet = running((deployment("low", replicas=150),), tuple(gpus(f"n{i:03}", 1) for i in range(150)))
    fleet = with_one_more(fleet, 9, replicas=150)
    before = devices_asked_for()
    (waiting,) = (refusal for refusal in plan(fleet).refusals if refusal.deployment == "urgent")
    assert waiting.missing == 150
    assert devices_asked_for() - before < 20 * 150


def test_a_rebalance_does_not_look_at_every_node_for_each_move() -> None:
    crowded = running((deployment("x", replicas=200),), tuple(gpus(f"n{i:03}", 10) for i in range(20)))
    roomy = dataclasses.replace(crowded, nodes=tuple(gpus(f"n{i:03}", 10) for i in range(40)))
    before = devices_asked_for()
    assert len(better_places(roomy)) == 100
    assert devices_asked_for() - before < 2_500


def test_what_nodes_offer_is_compared_once_and_not_for_each_deployment() -> None:
    names = [f"d{i:02}" for i in range(50)]
    fleet = Snapshot(deployments=tuple(map(deployment, names)), nodes=tuple(gpus(f"n{i}", 5) for i in range(10)))
    before = times_asked(fit._known_offer.cache_info())
    assert plan(fleet).refusals == ()
    assert times_asked(fit._known_offer.cache_info()) - before == len(fleet.nodes)


def devices_asked_for() -> int:
    return times_asked(fit._remembered.cache_info())


def times_asked(cache: Any) -> int:
    return int(cache.hits + cache.misses)


def test_an_equal_priority_takes_nothing() -> None:
    fleet = with_one_more(running((deployment("first", priority=9),), (gpus("a", 1),)), 9)
    assert places(fleet) == [("first-aaaaa-0", "a", "serve")]
    assert [r.waits_for for r in plan(fleet).refusals] == [""]


def test_what_cannot_be_read_is_sent_away_by_nobody_and_what_drains_of_it_still_ends() -> None:
    known = deployment("low")
    fleet = running((known,), (gpus("a", 1),))
    unreadable = {keys.deployment("low"): "model: Field required"}
    fleet = with_one_more(dataclasses.replace(fleet, deployments=(), unreadable=unreadable), 9)
    assert [(p.id, p.intent) for p in plan(fleet).placements] == [("low-aaaaa-0", "serve")]
    assert [r.waits_for for r in plan(fleet).refusals] == [""]
    sent_away = tuple(
        p.model_copy(update={"intent": Intent.DRAIN, "why": "it was told so before"}) for p in fleet.placements
    )
    fleet = dataclasses.replace(fleet, placements=sent_away)
    assert [r.waits_for for r in plan(fleet).refusals] == ["low-aaaaa-0 to drain on a"]
    assert places(fleet) == [("urgent-uuuuu-0", "a", "serve")]


def test_nobody_is_sent_away_while_what_drains_makes_the_room() -> None:
    fleet = running((deployment("low"), deployment("gone", uid="ggggg")), (gpus("a", 1), gpus("b", 1)))
    fleet = dataclasses.replace(fleet, deployments=fleet.deployments[:1])
    fleet = with_one_more(fleet, 9)
    assert [p.id for p in plan(fleet).placements if p.intent == "drain"] == ["gone-ggggg-0"]
    assert [r.waits_for for r in plan(fleet).refusals] == ["gone-ggggg-0 to drain on a"]


def test_what_was_sent_away_comes_back_when_there_is_room_again() -> None:
    fleet = with_one_more(running((deployment("low"),), (gpus("a", 1),)), 9)
    fleet = with_agents_work(planned(fleet, foreseen(fleet).plan))
    assert [(r.deployment, r.missing) for r in plan(fleet).refusals] == [("low", 1)]
    fleet = dataclasses.replace(fleet, deployments=fleet.deployments[:1])
    assert places(fleet) == [("low-aaaaa-0", "a", "serve")]


def test_labels_say_where_and_a_new_label_moves_what_runs() -> None:
    north = node("a").model_copy(update={"labels": {"zone": "north"}})
    south = node("b").model_copy(update={"labels": {"zone": "south"}})
    fleet = running((deployment(node_selector={"zone": "south"}),), (north, south, node("c")))
    assert [p.node for p in fleet.placements] == ["b"]
    nowhere = plan(dataclasses.replace(fleet, deployments=(deployment(node_selector={"zone": "west"}),)))
    assert nowhere.refusals[0].reasons == {
        "a": "has zone=north, not west",
        "b": "has zone=south, not west",
        "c": "has no label zone=west",
    }
    assert [(p.node, p.intent) for p in nowhere.placements] == [("b", "serve")], (
        "it serves on until it can go elsewhere"
    )
    moved = dataclasses.replace(fleet, deployments=(deployment(generation=2, node_selector={"zone": "north"}),))
    assert [place[1] for place in places(moved)] == ["a"]


def test_anti_affinity_holds_whoever_says_it_and_against_itself() -> None:
    alone = deployment("alone", uid="bbbbb", anti_affinity=["chat"])
    fleet = running((deployment(), alone), (node("a"), node("b")))
    assert {p.deployment: p.node for p in fleet.placements} == {"alone": "a", "chat": "b"}
    assert plan(dataclasses.replace(fleet, deployments=(deployment(replicas=3), alone))).refusals == ()
    apart = plan(Snapshot(deployments=(deployment(replicas=3, anti_affinity=["chat"]),), nodes=fleet.nodes))
    assert [p.node for p in apart.placements] == ["a", "b"]
    assert apart.refusals[0].reasons["a"] == "runs chat, which chat must not share a node with"


def test_packed_replicas_fill_a_node_before_the_next() -> None:
    one, two = deployment("one", uid="ooooo", strategy="pack"), deployment("two", uid="ttttt", strategy="pack")
    fleet = Snapshot(deployments=(one, two), nodes=(gpus("a", 4), gpus("b", 2)))
    assert {p.node for p in plan(fleet).placements} == {"b"}


def settled(name: str, **decided: bool) -> tuple[NodeSettings, ...]:
    return (NodeSettings(node=name, **decided),)


def test_a_cordoned_node_keeps_what_it_runs_and_takes_nothing() -> None:
    fleet = running((deployment(replicas=2),), (node("a"), node("b")))
    fleet = dataclasses.replace(fleet, node_settings=settled("a", cordoned=True), deployments=(deployment(replicas=4),))
    assert [p.node for p in plan(fleet).placements] == ["a", "b", "b", "b"]


def test_a_node_of_which_it_cannot_be_read_what_people_decided_takes_nothing() -> None:
    fleet = running((deployment(replicas=2),), (node("a"), node("b")))
    odd = dataclasses.replace(fleet, deployments=(deployment(replicas=4),), unreadable={keys.node_settings("a"): "x"})
    assert [p.node for p in plan(odd).placements] == ["a", "b", "b", "b"]


def test_a_drained_node_is_emptied_one_by_one_and_only_into_room() -> None:
    fleet = running((deployment(replicas=2),), (gpus("a", 2), gpus("b", 1)))
    assert sorted(p.node for p in fleet.placements) == ["a", "b"]
    fleet = dataclasses.replace(fleet, node_settings=settled("a", drain=True))
    stuck = plan(fleet)
    assert stuck.placements == fleet.placements, "there is no room elsewhere"
    assert stuck.refusals[0].reasons["a"] == "is drained; `deepinfer uncordon a` lets it take replicas again"
    roomy = dataclasses.replace(fleet, nodes=(*fleet.nodes, gpus("c", 1)))
    assert [(p.node, p.intent) for p in plan(roomy).placements] == [("a", "serve"), ("b", "serve"), ("c", "serve")]
    assert sorted(place[1] for place in places(roomy)) == ["b", "c"]


def test_a_refusal_by_thousands_of_nodes_stays_small_enough_to_be_written() -> None:
    long = "x" * 62
    fleet = running((deployment(long, replicas=800),), tuple(gpus(f"{long[:58]}{i:04}", 8) for i in range(100)))
    many = tuple(gpus(f"{long[:58]}{i:04}", 8) for i in range(100, 3000))
    full = dataclasses.replace(fleet, nodes=(*fleet.nodes, *(n.model_copy(update={"leaving": True}) for n in many)))
    (refusal,) = plan(with_one_more(full, 0)).refusals
    assert len(refusal.to_json()) < 100_000
    assert (len(refusal.reasons), refusal.untold) == (50, 2950)
    assert refusal.told.endswith("; and 2950 more nodes (see `deepinfer explain urgent`)")


def test_a_node_under_pressure_takes_nothing_and_says_what_it_lacks() -> None:
    short = node("a").model_copy(update={"pressure": ("memory: 2 % of 24 GiB left",)})
    told = plan(Snapshot(deployments=(deployment(),), nodes=(short,)))
    assert told.refusals[0].reasons == {"a": "takes nothing new: memory: 2 % of 24 GiB left"}
