"""Properties of the scheduler over random fleets and everything that can happen to them."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from deepinfer.control_plane.scheduler.fit import same_engine
from deepinfer.control_plane.scheduler.foresight import foreseen, with_agents_work
from deepinfer.control_plane.scheduler.plan import Plan, plan, planned
from deepinfer.control_plane.scheduler.rebalancing import better_places
from deepinfer.control_plane.scheduler.sight import Outlook, Sight
from deepinfer.fleet.resources import Deployment, Intent, Move, Node, NodeSettings, Phase, Placement
from deepinfer.fleet.snapshot import Snapshot
from tests.decisions.test_plan import (
    applied,
    check_devices_and_replicas,
    deployment,
    node,
    ready,
    running,
    with_deployments,
)

NODES = {
    n.name: n
    for n in (
        node("a").model_copy(update={"labels": {"zone": "north"}}),
        node("b", cuda=1),
        node("c", cuda=3, cpu=False).model_copy(update={"labels": {"zone": "north"}}),
        node("d", cuda=2, engines=("sim",)),
    )
}
NAMES = ("x", "y", "z")
SPECS = st.fixed_dictionaries(
    {
        "engine": st.sampled_from(["sim", "layer-shard"]),
        "device": st.sampled_from(["auto", "auto", "cpu", "cuda:0", "0,1", "2"]),
        "replicas": st.integers(0, 4),
        "tensor_parallel_size": st.sampled_from([None, None, 2]),
        "priority": st.sampled_from([0, 0, 0, 5, 9]),
        "node_selector": st.sampled_from([{}, {}, {"zone": "north"}]),
        "anti_affinity": st.sampled_from([(), (), ("x",), ("y", "z")]),
        "strategy": st.sampled_from(["spread", "pack"]),
        "rollout": st.fixed_dictionaries({"max_surge": st.integers(0, 2), "max_unavailable": st.integers(0, 2)}),
    }
)
EVENTS = st.one_of(
    st.tuples(st.just("apply"), st.sampled_from(NAMES), SPECS),
    st.tuples(st.just("apply"), st.sampled_from(NAMES), SPECS),
    st.tuples(st.just("delete"), st.sampled_from(NAMES), st.none()),
    st.tuples(st.just("node"), st.sampled_from(sorted(NODES)), st.booleans()),
    st.tuples(
        st.just("agent"), st.sampled_from(sorted(NODES)), st.sampled_from([p for p in Phase if p is not Phase.STOPPED])
    ),
    st.tuples(st.just("agents"), st.just(""), st.none()),
    st.tuples(st.just("settings"), st.sampled_from(sorted(NODES)), st.tuples(st.booleans(), st.booleans())),
    st.tuples(st.just("leave"), st.sampled_from(sorted(NODES)), st.booleans()),
    st.tuples(st.just("move"), st.just(""), st.integers(0, 9)),
)
Event = tuple[str, str, Any]
HISTORIES = st.lists(EVENTS, max_size=25)


def after(fleet: Snapshot, event: Event, step: int) -> Snapshot:
    """What a user, a network or an agent does to the fleet."""
    kind, name, value = event
    match kind:
        case "apply":
            return applied(fleet, name, value, step)
        case "delete":
            return with_deployments(fleet, name, ())
        case "node":
            return with_node(fleet, name, NODES[name] if value else None)
        case "leave" if any(n.name == name for n in fleet.nodes):
            return with_node(fleet, name, NODES[name].model_copy(update={"leaving": value}))
        case "agents":
            return with_agents_work(fleet)
        case "agent" if any(n.name == name for n in fleet.nodes):
            return with_words_of(fleet, name, value)
        case "settings":
            others = tuple(s for s in fleet.node_settings if s.node != name)
            decided = NodeSettings(node=name, cordoned=value[0], drain=value[1])
            return dataclasses.replace(fleet, node_settings=(*others, decided))
        case "move" if fleet.placements:
            moved = fleet.placements[value % len(fleet.placements)]
            return dataclasses.replace(fleet, moves=(Move(placement=moved.id, epoch=moved.epoch),))
    return fleet


def with_node(fleet: Snapshot, name: str, now: Node | None) -> Snapshot:
    nodes = [n for n in fleet.nodes if n.name != name] + ([now] if now else [])
    return dataclasses.replace(fleet, nodes=tuple(sorted(nodes, key=lambda n: n.name)))


def with_words_of(fleet: Snapshot, name: str, phase: Phase) -> Snapshot:
    """The agent of one node tells `phase` of all it should serve, and nothing more of what has ended."""
    theirs = tuple(s for s in fleet.statuses if s.node != name)
    mine = (p for p in fleet.placements if p.node == name and p.intent is Intent.SERVE)
    return dataclasses.replace(fleet, statuses=(*theirs, *(ready(p).model_copy(update={"phase": phase}) for p in mine)))


def lived(events: list[Event]) -> Snapshot:
    """The fleet after a history, every step planned and written."""
    fleet = Snapshot(nodes=tuple(NODES.values()))
    for step, event in enumerate(events):
        fleet = after(fleet, event, step)
        fleet = planned(fleet, plan(fleet))
    return fleet


@settings(max_examples=200, deadline=None)
@given(HISTORIES)
def test_every_plan_of_every_history(events: list[Event]) -> None:
    fleet = Snapshot(nodes=tuple(NODES.values()))
    for step, event in enumerate(events):
        fleet = after(fleet, event, step)
        wanted = plan(fleet)
        check_devices_and_replicas(wanted)
        check_epochs(fleet, wanted)
        assert plan(planned(fleet, wanted)) == wanted, "a plan that is carried out stands"
        check_that_enough_stay(fleet, wanted)
        fleet = planned(fleet, wanted)
        away = dataclasses.replace(fleet, nodes=())
        assert plan(away).placements == wanted.placements, "losing every node moves nothing"


def check_epochs(fleet: Snapshot, wanted: Plan) -> None:
    """A place, a device or a spec never changes under one epoch."""
    before = {(p.id, p.node): p for p in fleet.placements}
    for placement in wanted.placements:
        old = before.get((placement.id, placement.node))
        if old is None:
            continue
        if old.epoch == placement.epoch:
            assert (old.devices, old.spec) == (placement.devices, placement.spec)
        assert placement.epoch >= old.epoch
        assert not (old.intent is Intent.DRAIN and placement.intent is Intent.SERVE and old.epoch == placement.epoch)


def check_that_enough_stay(fleet: Snapshot, wanted: Plan) -> None:
    """What serves is taken out only as far as its deployment allows, one at a time where there is no room."""
    sight = Sight(fleet)
    stays = {(p.id, p.epoch) for p in wanted.placements if p.intent is Intent.SERVE}
    strongest = max((d.spec.priority for d in fleet.deployments), default=0)
    for d in fleet.deployments:
        serving = [p for p in own(fleet, d) if p.intent is Intent.SERVE]
        ready_now = [p for p in serving if sight.is_ready(p)]
        still = [p for p in ready_now if (p.id, p.epoch) in stays]
        least = min(len(serving), d.spec.replicas) - max(1, d.spec.rollout.max_unavailable)
        if d.spec.priority == strongest:
            assert len(still) >= min(len(ready_now), least)


def own(fleet: Snapshot, d: Deployment) -> list[Placement]:
    return [p for p in fleet.placements if p.id == f"{d.name}-{d.uid}-{p.replica}"]


@settings(max_examples=100, deadline=None)
@given(HISTORIES)
def test_every_history_comes_to_rest_as_was_asked_or_with_a_refusal(events: list[Event]) -> None:
    fleet = lived(events)
    end = foreseen(fleet)
    assert end.is_final
    fleet = with_agents_work(planned(fleet, end.plan))
    refused = {refusal.deployment: refusal.missing for refusal in end.plan.refusals}
    alive = {n.name for n in fleet.nodes}
    drained = {s.node for s in fleet.node_settings if s.drain} | {n.name for n in fleet.nodes if n.leaving}
    for d in fleet.deployments:
        serving = [p for p in own(fleet, d) if p.intent is Intent.SERVE]
        if any(p.node not in alive for p in own(fleet, d)):
            continue  # nobody knows what runs there
        good = [p for p in serving if same_engine(p.spec, d.spec) and p.node not in drained]
        assert len(good) + refused.get(d.name, 0) >= d.spec.replicas
        assert d.name in refused or len(serving) == d.spec.replicas


@settings(max_examples=60, deadline=None)
@given(HISTORIES)
def test_a_gateway_that_has_looked_foresees_the_same_end_where_all_engines_answer(events: list[Event]) -> None:
    fleet = lived(events)
    alive = {n.name for n in fleet.nodes}
    ready_there = ((s.id, s.epoch) for s in fleet.statuses if s.phase is Phase.READY and s.node in alive)
    assert foreseen(fleet, Outlook(answering=frozenset(ready_there))) == foreseen(fleet)


@settings(max_examples=100, deadline=None)
@given(HISTORIES, st.integers(1, 3))
def test_one_more_node_makes_nothing_worse_and_moves_nothing(events: list[Event], cuda: int) -> None:
    fleet = lived(events)
    before = plan(fleet)
    more = with_node(fleet, "new", node("new", cuda=cuda))
    now = plan(more)
    kept = {(p.node, p.id, p.epoch) for p in before.placements if p.intent is Intent.SERVE and p in fleet.placements}
    assert kept <= {(p.node, p.id, p.epoch) for p in now.placements if p.intent is Intent.SERVE} | {
        (p.node, p.id, p.epoch) for p in now.placements if p.why and p.node != "new"
    }
    strongest = max((d.spec.priority for d in fleet.deployments), default=0)
    missing = Counter({r.deployment: r.missing for r in before.refusals})
    for refusal in now.refusals:
        if next(d.spec.priority for d in fleet.deployments if d.name == refusal.deployment) == strongest:
            assert refusal.missing <= missing[refusal.deployment]


@settings(max_examples=100, deadline=None)
@given(HISTORIES, st.sampled_from(NAMES), SPECS)
def test_a_change_of_one_deployment_moves_no_other_except_the_weaker(
    events: list[Event], name: str, spec: dict[str, Any]
) -> None:
    fleet = lived(events)
    fleet = planned(with_agents_work(fleet), foreseen(fleet).plan)
    settled = foreseen(fleet).plan
    fleet = with_agents_work(planned(fleet, settled))
    changed = after(fleet, ("apply", name, spec), 99)
    others = {
        (p.id, p.node, p.epoch) for p in settled.placements if p.deployment != name and not weaker(changed, p, name)
    }
    then = {(p.id, p.node, p.epoch) for p in plan(changed).placements if p.intent is Intent.SERVE or p.why == ""}
    drained_before = {(p.id, p.node, p.epoch) for p in settled.placements if p.intent is Intent.DRAIN}
    assert others - drained_before <= then


def weaker(fleet: Snapshot, placement: Placement, than: str) -> bool:
    priority = {d.name: d.spec.priority for d in fleet.deployments}
    return priority.get(placement.deployment, 0) < priority.get(than, 0)


@settings(max_examples=100, deadline=None)
@given(HISTORIES, st.sets(st.sampled_from(sorted(NODES)), max_size=2))
def test_what_is_lost_is_replaced_elsewhere_and_fenced_where_it_was(events: list[Event], lost: set[str]) -> None:
    fleet = lived(events)
    away = dataclasses.replace(fleet, nodes=tuple(n for n in fleet.nodes if n.name not in lost))
    outlook = Outlook(lost=frozenset(lost))
    wanted = plan(away, outlook)
    check_devices_and_replicas(wanted)
    assert plan(planned(away, wanted), outlook) == wanted
    told = {(s.node, s.id) for s in away.statuses if s.phase is not Phase.STOPPED}
    for placement in fleet.placements:
        if placement.node in lost and (placement.node, placement.id) in told:
            fence = next(p for p in wanted.placements if (p.node, p.id) == (placement.node, placement.id))
            assert fence.intent is Intent.DRAIN, "when the node returns, it is told to end it"


@settings(max_examples=100, deadline=None)
@given(HISTORIES, st.sets(st.sampled_from(sorted(NODES)), max_size=2))
def test_without_what_is_lost_the_fleet_comes_to_rest_as_was_asked_or_with_a_refusal(
    events: list[Event], lost: set[str]
) -> None:
    fleet = lived(events)
    fleet = dataclasses.replace(fleet, nodes=tuple(n for n in fleet.nodes if n.name not in lost))
    alive = {n.name for n in fleet.nodes}
    end = foreseen(fleet, Outlook(lost=frozenset(NODES.keys() - alive)))
    assert end.is_final
    given_up = {s.node for s in fleet.node_settings if s.drain} | {n.name for n in fleet.nodes if n.leaving}
    refused = {refusal.deployment: refusal.missing for refusal in end.plan.refusals}
    for d in fleet.deployments:
        serving = [p for p in own(planned(fleet, end.plan), d) if p.intent is Intent.SERVE]
        assert all(p.node in alive for p in serving)
        good = [p for p in serving if same_engine(p.spec, d.spec) and p.node not in given_up]
        assert len(good) + refused.get(d.name, 0) >= d.spec.replicas
        assert d.name in refused or len(serving) == d.spec.replicas


def test_what_can_never_drain_holds_up_neither_a_rollout_nor_a_rebalance() -> None:
    gpus = {name: node(name, cuda=1, cpu=False) for name in "abc"}
    fleet = Snapshot(deployments=(deployment(replicas=2),), nodes=tuple(gpus.values()))
    fleet = with_agents_work(planned(fleet, plan(fleet)))
    fleet, lost = with_node(fleet, "b", None), Outlook(lost=frozenset("b"))
    fleet = with_agents_work(planned(fleet, foreseen(fleet, lost).plan))
    fence = [(p.id, p.why) for p in fleet.placements if p.node == "b"]
    assert fence == [("chat-aaaaa-1", "node b is lost")]
    changed = dataclasses.replace(fleet, deployments=(deployment(replicas=2, generation=2, max_model_len=64),))
    end = foreseen(changed, lost).plan
    assert [(p.node, p.generation) for p in end.placements if p.intent is Intent.SERVE] == [("a", 2), ("c", 2)]
    crowded = running((deployment(replicas=2),), (node("a", cuda=2, cpu=False), gpus["b"]))
    crowded = with_node(crowded, "b", None)
    crowded = with_agents_work(planned(crowded, foreseen(crowded, lost).plan))
    assert [m.placement for m in better_places(with_node(crowded, "c", gpus["c"]))] == ["chat-aaaaa-0"]


def test_an_engine_that_answers_is_not_lost_with_its_agent() -> None:
    fleet = Snapshot(deployments=(deployment(replicas=2),), nodes=(node("a"), node("b")))
    fleet = with_agents_work(planned(fleet, plan(fleet)))
    away = dataclasses.replace(fleet, nodes=(node("a"),))
    answers = Outlook(lost=frozenset({"b"}), answering=frozenset({("chat-aaaaa-0", 1), ("chat-aaaaa-1", 1)}))
    assert plan(away, answers).placements == fleet.placements
    moved = plan(away, Outlook(lost=frozenset({"b"})))
    assert [(p.id, p.node, p.intent) for p in moved.placements] == [
        ("chat-aaaaa-0", "a", "serve"),
        ("chat-aaaaa-2", "a", "serve"),
        ("chat-aaaaa-1", "b", "drain"),
    ]
    assert moved.placements[-1].why == "node b is lost"
    back = dataclasses.replace(planned(away, moved), nodes=fleet.nodes)
    ended = dataclasses.replace(back, statuses=tuple(s for s in back.statuses if s.node != "b"))
    assert [p.node for p in plan(ended).placements] == ["a", "a"]


def test_a_rollout_is_foreseen_to_its_end_by_a_gateway_that_has_looked() -> None:
    fleet = Snapshot(deployments=(deployment(replicas=2),), nodes=(node("a"), node("b")))
    fleet = with_agents_work(planned(fleet, plan(fleet)))
    answering = frozenset((p.id, p.epoch) for p in fleet.placements)
    changed = dataclasses.replace(fleet, deployments=(deployment(replicas=2, generation=2, max_model_len=64),))
    end = foreseen(changed, Outlook(answering=answering)).plan
    assert [(p.generation, p.intent) for p in end.placements] == [(2, "serve"), (2, "serve")]
    away = dataclasses.replace(changed, nodes=(node("a"),))
    end = foreseen(away, Outlook(lost=frozenset({"b"}), answering=answering)).plan
    assert [(p.node, p.generation, p.intent, p.why) for p in end.placements] == [
        ("a", 2, "serve", ""),
        ("a", 2, "serve", ""),
        ("b", 1, "drain", "generation 2 replaces it"),
    ]


def test_fewer_are_wanted_also_while_an_engine_serves_without_its_agent() -> None:
    fleet = Snapshot(deployments=(deployment(replicas=2),), nodes=(node("a"), node("b")))
    fleet = with_agents_work(planned(fleet, plan(fleet)))
    answering = frozenset((p.id, p.epoch) for p in fleet.placements)
    fewer = with_node(dataclasses.replace(fleet, deployments=(deployment(replicas=1, generation=2),)), "a", None)
    none = dataclasses.replace(fewer, deployments=(deployment(replicas=0, generation=2),))

    def serving(fleet: Snapshot, lost: str = "") -> list[str]:
        told = plan(fleet, Outlook(frozenset(lost), answering)).placements
        return [p.node for p in told if p.intent is Intent.SERVE]

    assert serving(fewer) == ["a", "b"], "a may have been leaving, so that b was started instead"
    assert serving(fewer, lost="a") == ["b"]
    assert serving(none) == []
