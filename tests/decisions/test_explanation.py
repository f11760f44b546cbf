"""What `explain` says, beside what the plan then does; and which moves a rebalance asks for."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepinfer.control_plane.scheduler.explanation import explained
from deepinfer.control_plane.scheduler.foresight import foreseen, with_agents_work
from deepinfer.control_plane.scheduler.plan import plan, planned
from deepinfer.control_plane.scheduler.rebalancing import better_places
from deepinfer.control_plane.scheduler.sight import Sight
from deepinfer.control_plane.scheduler.standing import standings
from deepinfer.fleet.conditions import Aspect
from deepinfer.fleet.resources import Intent, Move
from deepinfer.fleet.snapshot import Snapshot
from tests.decisions.test_plan import deployment, node, running
from tests.decisions.test_plan_histories import HISTORIES, NAMES, Event, lived


def at_rest(events: list[Event]) -> Snapshot:
    fleet = lived(events)
    return with_agents_work(planned(fleet, foreseen(fleet).plan))


@settings(max_examples=150, deadline=None)
@given(HISTORIES, st.sampled_from(NAMES))
def test_the_first_of_the_fitting_nodes_is_where_one_more_goes(events: list[Event], name: str) -> None:
    fleet = at_rest(events)
    asked = next((d for d in fleet.deployments if d.name == name), None)
    alive = {n.name for n in fleet.nodes}
    if asked is None or plan(fleet).refusals or any(p.node not in alive for p in fleet.placements):
        return  # what runs on a node that is not there counts, but nobody knows for how long
    told = explained(fleet, name)
    assert told.missing == 0
    more = asked.spec.model_copy(update={"replicas": asked.spec.replicas + 1})
    bigger = asked.model_copy(update={"spec": more, "generation": asked.generation + 1})
    after = dataclasses.replace(fleet, deployments=tuple(bigger if d is asked else d for d in fleet.deployments))
    wanted = plan(after)
    known = {(p.id, p.epoch) for p in fleet.placements}
    new = [(p.node, p.devices) for p in wanted.placements if p.deployment == name and (p.id, p.epoch) not in known]
    first = next((verdict for verdict in told.nodes if verdict.rank == 1), None)
    if first is not None:
        assert new == [(first.node, first.devices)]
    else:
        refusal = next(r for r in wanted.refusals if r.deployment == name)
        assert new == []
        if not refusal.waits_for:
            assert refusal.reasons == {verdict.node: verdict.reason for verdict in told.nodes}


def test_each_device_says_why_not() -> None:
    fleet = running((deployment(device="cuda:0"),), (node("a", cuda=2), node("b", engines=())))
    told = explained(dataclasses.replace(fleet, deployments=(deployment(replicas=2, device="cuda:0"),)), "chat")
    assert [(v.node, v.rank, v.reason) for v in told.nodes] == [
        ("a", None, "device cuda:0 is taken by chat-aaaaa-0"),
        ("b", None, 'engine "sim" is not installed there (installed: none)'),
    ]
    assert [(d.device, d.free, d.reason) for d in told.nodes[0].device_verdicts] == [
        ("cpu", False, "cpu is not asked for, but cuda:0"),
        ("cuda:0", False, "is taken by chat-aaaaa-0"),
        ("cuda:1", False, "cuda:1 is not asked for, but cuda:0"),
    ]
    assert (told.missing, told.replicas[0].why) == (1, "stays: what runs is left where it runs")


def test_what_drains_and_what_is_to_be_replaced_say_why() -> None:
    fleet = running((deployment(),), (node("a"),))
    fleet = dataclasses.replace(fleet, nodes=(node("a").model_copy(update={"leaving": True}),))
    assert explained(fleet, "chat").replicas[0].why == "is to be replaced: node a is leaving"
    fleet = dataclasses.replace(fleet, nodes=(*fleet.nodes, node("b")))
    assert [r.why for r in explained(fleet, "chat").replicas] == [
        "is to be replaced: node a is leaving",
        "starts: it is the best place for it now",
    ]
    end = foreseen(fleet).plan
    assert [(p.node, p.intent) for p in end.placements] == [("b", Intent.SERVE)]


def moved(fleet: Snapshot) -> Snapshot:
    fleet = dataclasses.replace(fleet, moves=better_places(fleet))
    return with_agents_work(planned(fleet, foreseen(fleet).plan))


def test_a_rebalance_spreads_what_a_new_node_can_take() -> None:
    fleet = running((deployment(replicas=4),), (node("a"),))
    fleet = dataclasses.replace(fleet, nodes=(node("a"), node("b")))
    assert plan(fleet).placements == fleet.placements, "never without being asked"
    fleet = moved(fleet)
    assert Counter(p.node for p in fleet.placements) == {"a": 2, "b": 2}
    assert better_places(fleet) == ()


def test_a_rebalance_gives_an_accelerator_to_what_had_to_do_with_the_cpu() -> None:
    fleet = running((deployment(),), (node("a"),))
    fleet = moved(dataclasses.replace(fleet, nodes=(node("a"), node("b", cuda=1))))
    assert [(p.node, p.devices) for p in fleet.placements] == [("b", ("cuda:0",))]


@pytest.mark.parametrize("max_surge", [0, 1])
def test_a_better_place_that_is_gone_by_now_costs_nobody_the_one_it_has(max_surge: int) -> None:
    few = deployment(device="cuda:0", rollout={"max_surge": max_surge})
    fleet = running((few,), (node("a", cuda=1),))
    fleet = dataclasses.replace(fleet, moves=tuple(Move(placement=p.id, epoch=p.epoch) for p in fleet.placements))
    assert plan(fleet).placements == fleet.placements
    assert plan(fleet).refusals == ()
    (told,) = standings(Sight(fleet), "now")
    assert {c.aspect: c.reason for c in told.conditions}[Aspect.PROGRESSING] == "Complete"
    roomy = dataclasses.replace(fleet, nodes=(*fleet.nodes, node("b", cuda=1)))
    assert [(p.node, p.intent) for p in foreseen(roomy).plan.placements] == [("b", Intent.SERVE)]


def test_a_rebalance_packs_what_is_to_be_packed() -> None:
    nodes = (node("c", cuda=2, cpu=False), node("d", cuda=2, cpu=False))
    fleet = running((deployment("x"), deployment("y", uid="bbbbb")), nodes)
    assert {p.node for p in fleet.placements} == {"c", "d"}
    packed = (deployment("x", strategy="pack"), deployment("y", uid="bbbbb", strategy="pack"))
    fleet = moved(dataclasses.replace(fleet, deployments=packed))
    assert len({p.node for p in fleet.placements}) == 1


@settings(max_examples=60, deadline=None)
@given(HISTORIES)
def test_a_rebalance_loses_nobody_a_place(events: list[Event]) -> None:
    fleet = at_rest(events)
    before = {r.deployment: r.missing for r in plan(fleet).refusals}
    after = moved(fleet)
    assert all(r.missing <= before.get(r.deployment, 0) for r in plan(after).refusals)
