"""Where replicas go: tables for the rules, random histories of a fleet for the properties."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepinfer.control_plane.scheduler.plan import Plan, plan, planned
from deepinfer.fleet import keys
from deepinfer.fleet.resources import (
    ContainerRuntime,
    Deployment,
    Device,
    Intent,
    Node,
    Phase,
    Placement,
    ReplicaStatus,
)
from deepinfer.fleet.snapshot import Snapshot
from deepinfer.fleet.spec import DeploymentSpec
from tests.fleet_values import installed


def node(name: str, cuda: int = 0, engines: tuple[str, ...] = ("sim", "layer-shard"), cpu: bool = True) -> Node:
    devices = [Device(id="cpu", kind="cpu", name="CPU", memory_bytes=1)] if cpu else []
    devices += [Device(id=f"cuda:{i}", kind="cuda", name="GPU", memory_bytes=1) for i in range(cuda)]
    return Node(
        name=name,
        instance="i",
        agent_endpoint="127.0.0.1:1",
        devices=tuple(devices),
        engines=tuple(installed(engine) for engine in engines),
        version="0",
    )


def deployment(name: str = "chat", generation: int = 1, uid: str = "aaaaa", **spec: Any) -> Deployment:
    wanted = DeploymentSpec.model_validate({"model": "m", "engine": "sim", **spec})
    return Deployment(name=name, uid=uid, generation=generation, created_at="2026-01-01T00:00:00Z", spec=wanted)


def ready(placement: Placement) -> ReplicaStatus:
    return ReplicaStatus(id=placement.id, epoch=placement.epoch, node=placement.node, phase=Phase.READY)


def running(deployments: tuple[Deployment, ...], nodes: tuple[Node, ...]) -> Snapshot:
    """A fleet in which everything that could be placed is ready."""
    fleet = Snapshot(deployments=deployments, nodes=nodes)
    fleet = planned(fleet, plan(fleet))
    return dataclasses.replace(fleet, statuses=tuple(ready(p) for p in fleet.placements))


def told(wanted: Plan) -> list[tuple[str, int, str, tuple[str, ...], str]]:
    return [(p.id, p.epoch, p.node, p.devices, p.intent) for p in wanted.placements]


@pytest.mark.parametrize(
    ("spec", "nodes", "expected"),
    [
        ({}, [node("a")], ("a", ("cpu",))),
        ({"device": "cpu"}, [node("a", cuda=2)], ("a", ("cpu",))),
        ({}, [node("a"), node("b", cuda=1)], ("b", ("cuda:0",))),
        ({"tensor_parallel_size": 2}, [node("a", cuda=1), node("b", cuda=2)], ("b", ("cuda:0", "cuda:1"))),
        ({"device": "cuda:1"}, [node("a", cuda=1), node("b", cuda=2)], ("b", ("cuda:1",))),
        ({"device": "1,0"}, [node("a", cuda=2)], ("a", ("cuda:1", "cuda:0"))),
        ({"engine": "layer-shard"}, [node("a", engines=("sim",)), node("b")], ("b", ("cpu",))),
    ],
)
def test_a_replica_goes_where_its_engine_and_devices_are(
    spec: dict[str, Any], nodes: list[Node], expected: tuple[str, tuple[str, ...]]
) -> None:
    wanted = plan(Snapshot(deployments=(deployment(**spec),), nodes=tuple(nodes)))
    assert [(p.node, p.devices) for p in wanted.placements] == [expected]
    assert wanted.refusals == ()


@pytest.mark.parametrize(
    ("spec", "nodes", "reasons"),
    [
        ({}, [], {}),
        ({}, [node("a", engines=())], {"a": 'engine "sim" is not installed there (installed: none)'}),
        ({"device": "cpu"}, [node("a", cuda=1, cpu=False)], {"a": "offers no cpu device"}),
        ({"device": "cuda:3"}, [node("a", cuda=1)], {"a": "has no device cuda:3 (it has cpu, cuda:0)"}),
        ({"tensor_parallel_size": 2}, [node("a", cuda=1)], {"a": "has 1 free CUDA devices of the 2 needed"}),
        ({"device": "sim:0"}, [node("a", cuda=1)], {"a": "has no device sim:0 (it has cpu, cuda:0)"}),
    ],
)
def test_a_refusal_says_why_for_each_node(spec: dict[str, Any], nodes: list[Node], reasons: dict[str, str]) -> None:
    wanted = plan(Snapshot(deployments=(deployment(**spec),), nodes=tuple(nodes)))
    assert wanted.placements == ()
    assert [(r.deployment, r.missing, r.reasons) for r in wanted.refusals] == [("chat", 1, reasons)]


def test_a_simulated_engine_takes_simulated_devices_and_holds_them_alone() -> None:
    offers = node("a", cuda=1)
    sims = tuple(Device(id=f"sim:{i}", kind="sim", name="simulated", memory_bytes=1) for i in range(2))
    wanted = plan(
        Snapshot(
            deployments=(deployment(replicas=2), deployment("second", device="sim:1", uid="bbbbb")),
            nodes=(offers.model_copy(update={"devices": (*offers.devices, *sims)}),),
        )
    )
    assert [p.devices for p in wanted.placements] == [("sim:0",), ("sim:1",)]
    assert [r.reasons for r in wanted.refusals] == [{"a": "device sim:1 is taken by chat-aaaaa-1"}]


@pytest.mark.parametrize("engine", ["vllm", "layer-shard"])
def test_only_simulated_engines_run_on_simulated_devices(engine: str) -> None:
    with pytest.raises(ValueError, match='device sim:0 is simulated; it needs "engine": "sim"'):
        DeploymentSpec.model_validate({"model": "m", "engine": engine, "device": "sim:0"})


def test_cuda_devices_belong_to_one_placement() -> None:
    fleet = Snapshot(
        deployments=(deployment("first", device="cuda:0"), deployment("second", device="0", uid="bbbbb")),
        nodes=(node("a", cuda=1),),
    )
    wanted = plan(fleet)
    assert [p.id for p in wanted.placements] == ["first-aaaaa-0"]
    assert wanted.refusals[0].reasons == {"a": "device cuda:0 is taken by first-aaaaa-0"}


def test_replicas_spread_over_nodes_and_then_over_their_load() -> None:
    other = deployment("other", uid="bbbbb")
    wanted = plan(Snapshot(deployments=(deployment(replicas=3), other), nodes=(node("a"), node("b"))))
    assert Counter((p.deployment, p.node) for p in wanted.placements) == {
        ("chat", "a"): 2,
        ("chat", "b"): 1,
        ("other", "b"): 1,
    }


def test_scaling_touches_no_running_replica_and_drains_the_highest_index() -> None:
    fleet = running((deployment(replicas=3),), (node("a"),))
    more = plan(dataclasses.replace(fleet, deployments=(deployment(generation=2, replicas=4),)))
    assert more.placements[:3] == fleet.placements
    assert len(more.placements) == 4
    fewer = plan(dataclasses.replace(fleet, deployments=(deployment(generation=2, replicas=1),)))
    assert [(p.replica, p.intent, p.epoch) for p in fewer.placements] == [
        (0, "serve", 1),
        (1, "drain", 1),
        (2, "drain", 1),
    ]


def test_a_changed_spec_starts_beside_the_old_one_which_goes_when_it_is_ready() -> None:
    fleet = running((deployment(),), (node("a"), node("b")))
    fleet = dataclasses.replace(fleet, deployments=(deployment(generation=2, max_model_len=64),))
    both = [("chat-aaaaa-0", 1, "a", ("cpu",), "serve"), ("chat-aaaaa-1", 2, "b", ("cpu",), "serve")]
    assert told(plan(fleet)) == both
    fleet = planned(fleet, plan(fleet))
    assert fleet.placements[1].spec.max_model_len == 64
    fleet = dataclasses.replace(fleet, statuses=tuple(map(ready, fleet.placements)))
    assert told(plan(fleet)) == [("chat-aaaaa-0", 1, "a", ("cpu",), "drain"), both[1]]


def test_without_room_beside_it_a_changed_spec_is_a_new_epoch_in_place() -> None:
    fleet = running((deployment(replicas=2, device="auto"),), (node("c", cuda=2, cpu=False),))
    fleet = dataclasses.replace(fleet, deployments=(deployment(replicas=2, generation=2, max_model_len=64),))
    assert told(plan(fleet)) == [
        ("chat-aaaaa-0", 1, "c", ("cuda:0",), "serve"),
        ("chat-aaaaa-1", 2, "c", ("cuda:1",), "serve"),
    ], "one at a time"
    fleet = planned(fleet, plan(fleet))
    fleet = dataclasses.replace(fleet, statuses=tuple(map(ready, fleet.placements)))
    assert [p.epoch for p in plan(fleet).placements] == [2, 2]


def test_what_can_only_go_where_the_old_one_is_waits_until_that_is_gone() -> None:
    fleet = running((deployment(tensor_parallel_size=1, device="auto"),), (node("c", cuda=2, cpu=False),))
    fleet = dataclasses.replace(fleet, deployments=(deployment(generation=2, tensor_parallel_size=2),))
    assert told(plan(fleet)) == [("chat-aaaaa-0", 1, "c", ("cuda:0",), "drain")]
    fleet = dataclasses.replace(planned(fleet, plan(fleet)), statuses=())
    assert told(plan(fleet)) == [("chat-aaaaa-0", 2, "c", ("cuda:0", "cuda:1"), "serve")]


def test_a_spec_that_fits_nowhere_leaves_the_old_one_serving() -> None:
    fleet = running((deployment(),), (node("a"),))
    fleet = dataclasses.replace(fleet, deployments=(deployment(generation=2, device="cuda:0"),))
    assert told(plan(fleet)) == [("chat-aaaaa-0", 1, "a", ("cpu",), "serve")]
    assert [(r.missing, r.reasons) for r in plan(fleet).refusals] == [(1, {"a": "has no device cuda:0 (it has cpu)"})]


@pytest.mark.parametrize("recreated", [False, True])
def test_a_deleted_deployment_drains_and_is_forgotten_when_its_agent_says_so(recreated: bool) -> None:
    fleet = running((deployment(),), (node("a"),))
    fleet = dataclasses.replace(fleet, deployments=(deployment(uid="bbbbb"),) if recreated else ())
    new = [("chat-bbbbb-0", 1, "a", ("cpu",), "serve")] if recreated else []
    assert told(plan(fleet)) == [("chat-aaaaa-0", 1, "a", ("cpu",), "drain"), *new]
    fleet = dataclasses.replace(planned(fleet, plan(fleet)), statuses=())
    assert told(plan(fleet)) == new


def test_what_is_on_a_lost_node_stays_until_the_node_returns() -> None:
    fleet = running((deployment(replicas=2), deployment("other", uid="bbbbb")), (node("a"),))
    lost = dataclasses.replace(fleet, nodes=(), deployments=(deployment(replicas=2),))
    assert told(plan(lost)) == [
        ("chat-aaaaa-0", 1, "a", ("cpu",), "serve"),
        ("chat-aaaaa-1", 1, "a", ("cpu",), "serve"),
        ("other-bbbbb-0", 1, "a", ("cpu",), "drain"),
    ]
    changed = dataclasses.replace(lost, deployments=(deployment(replicas=2, generation=2, dtype="float32"),))
    assert plan(changed) == plan(lost), "an unverified engine is not restarted"


def test_a_replica_that_is_wanted_again_gets_a_free_slot_while_the_old_one_drains() -> None:
    fleet = running((deployment(replicas=2),), (node("a"),))
    fleet = dataclasses.replace(fleet, deployments=(deployment(generation=2, replicas=1),))
    fleet = dataclasses.replace(planned(fleet, plan(fleet)), deployments=(deployment(generation=3, replicas=2),))
    assert [p.intent for p in plan(fleet).placements] == ["serve", "drain", "serve"]
    fleet = dataclasses.replace(fleet, statuses=fleet.statuses[:1])
    assert [(p.replica, p.intent, p.epoch) for p in plan(fleet).placements] == [(0, "serve", 1), (1, "serve", 3)]


def test_nothing_is_concluded_from_an_unreadable_deployment() -> None:
    fleet = running((deployment(),), (node("a"),))
    unreadable = {keys.deployment("chat"): "model: Field required"}
    assert plan(dataclasses.replace(fleet, deployments=(), unreadable=unreadable)).placements == fleet.placements


def test_nothing_new_is_placed_beside_an_unreadable_placement() -> None:
    record = keys.placement("a", "chat-aaaaa-0")
    other = deployment("other", uid="bbbbb")
    fleet = Snapshot(
        deployments=(deployment(), other), nodes=(node("a"),), unreadable={record: "epoch: Field required"}
    )
    wanted = plan(fleet)
    assert wanted.placements == ()
    assert [r.deployment for r in wanted.refusals] == ["other"], "the unreadable replica is not missing"
    assert "/deepinfer/placements/a/chat-aaaaa-0 cannot be read" in wanted.refusals[0].reasons["a"]


def test_a_node_with_an_unreadable_record_keeps_its_placements() -> None:
    fleet = running((deployment(), deployment("other", uid="bbbbb")), (node("a"),))
    unreadable = {keys.node("a"): "instance: Field required"}
    wanted = plan(dataclasses.replace(fleet, deployments=(deployment(),), nodes=(), statuses=(), unreadable=unreadable))
    assert [(p.deployment, p.intent) for p in wanted.placements] == [("chat", "serve"), ("other", "drain")]


NODES = {
    n.name: n for n in (node("a"), node("b", cuda=1), node("c", cuda=3, cpu=False), node("d", cuda=1, engines=("sim",)))
}
SPECS = st.fixed_dictionaries(
    {
        "engine": st.sampled_from(["sim", "layer-shard"]),
        "device": st.sampled_from(["auto", "cpu", "cuda:0", "0,1", "2"]),
        "replicas": st.integers(0, 4),
        "tensor_parallel_size": st.sampled_from([None, None, 2]),
    }
)
EVENTS = st.one_of(
    st.tuples(st.just("apply"), st.sampled_from(["x", "y", "z"]), SPECS),
    st.tuples(st.just("delete"), st.sampled_from(["x", "y", "z"]), st.none()),
    st.tuples(st.just("node"), st.sampled_from(sorted(NODES)), st.booleans()),
    st.tuples(st.just("agent"), st.sampled_from(sorted(NODES)), st.none()),
)


def after(fleet: Snapshot, event: tuple[str, str, Any], step: int) -> Snapshot:
    """What a user, a network or an agent does to the fleet."""
    kind, name, value = event
    match kind:
        case "apply":
            return applied(fleet, name, value, step)
        case "delete":
            return with_deployments(fleet, name, ())
        case "node":
            others = [n for n in fleet.nodes if n.name != name]
            return dataclasses.replace(
                fleet, nodes=tuple(sorted([*others, *[NODES[name]] * value], key=lambda n: n.name))
            )
    return with_agents_work(fleet, name) if name in {n.name for n in fleet.nodes} else fleet


def applied(fleet: Snapshot, name: str, spec: dict[str, Any], step: int) -> Snapshot:
    """As a new deployment or a new generation of the one that is there."""
    old = next((d for d in fleet.deployments if d.name == name), None)
    new = deployment(name, old.generation + 1 if old else 1, old.uid if old else f"{step:05d}", **spec)
    return with_deployments(fleet, name, (new,))


def with_deployments(fleet: Snapshot, name: str, new: tuple[Deployment, ...]) -> Snapshot:
    others = [d for d in fleet.deployments if d.name != name]
    return dataclasses.replace(fleet, deployments=tuple(sorted([*others, *new], key=lambda d: d.name)))


def with_agents_work(fleet: Snapshot, name: str) -> Snapshot:
    """The agent serves what is wanted and has stopped what drains."""
    theirs = [s for s in fleet.statuses if s.node != name]
    mine = [ready(p) for p in fleet.placements if p.node == name and p.intent is Intent.SERVE]
    return dataclasses.replace(fleet, statuses=tuple(theirs + mine))


@settings(max_examples=150, deadline=None)
@given(st.lists(EVENTS, max_size=25))
def test_properties_of_every_history(events: list[tuple[str, str, Any]]) -> None:
    fleet = Snapshot(nodes=tuple(NODES.values()))
    highest: dict[str, int] = {}
    for step, event in enumerate(events):
        fleet = after(fleet, event, step)
        wanted = plan(fleet)
        check_devices_and_replicas(wanted)
        check_epochs(fleet, wanted, highest)
        assert plan(planned(fleet, wanted)) == wanted, "a plan that is carried out stands"
        fleet = planned(fleet, wanted)
        lost = dataclasses.replace(fleet, nodes=())
        assert plan(lost).placements == wanted.placements, "losing every node moves nothing"


def check_devices_and_replicas(wanted: Plan) -> None:
    devices = Counter((p.node, device) for p in wanted.placements for device in p.devices if device != "cpu")
    assert all(count == 1 for count in devices.values()), "no device is given out twice"
    assert all(count == 1 for count in Counter(p.id for p in wanted.placements).values()), "no replica twice"


def check_epochs(fleet: Snapshot, wanted: Plan, highest: dict[str, int]) -> None:
    """A place, a device or a spec never changes under one epoch, and no epoch is used twice."""
    before = {(p.id, p.node): p for p in fleet.placements}
    for placement in wanted.placements:
        old = before.get((placement.id, placement.node))
        if old is None or old.epoch != placement.epoch:
            assert placement.epoch > highest.get(placement.id, 0)
            highest[placement.id] = placement.epoch
        else:
            assert (old.devices, old.spec) == (placement.devices, placement.spec)


def left(fleet: Snapshot, phase: Phase) -> Snapshot:
    """Node a is gone; `phase` is the last its agent said of what ran there. Node b has come."""
    statuses = tuple(status.model_copy(update={"phase": phase}) for status in fleet.statuses)
    return dataclasses.replace(fleet, nodes=(node("b"),), statuses=statuses)


def test_what_an_agent_stopped_before_it_left_gets_a_new_place_and_a_new_epoch() -> None:
    fleet = running((deployment(),), (node("a"),))
    assert told(plan(left(fleet, Phase.READY))) == [("chat-aaaaa-0", 1, "a", ("cpu",), "serve")]
    moved = left(fleet, Phase.STOPPED)
    assert told(plan(moved)) == [("chat-aaaaa-0", 2, "b", ("cpu",), "serve")]
    assert plan(planned(moved, plan(moved))) == plan(moved)


def test_what_an_agent_stopped_before_it_left_can_be_deleted_without_it() -> None:
    fleet = dataclasses.replace(left(running((deployment(),), (node("a"),)), Phase.STOPPED), deployments=())
    assert plan(fleet).placements == ()


def test_a_placement_of_a_restored_backup_is_raised_above_the_epoch_that_runs() -> None:
    (placed,) = plan(Snapshot(deployments=(deployment(replicas=1),), nodes=(node("a"),))).placements
    newer = ready(placed.model_copy(update={"epoch": 4}))
    fleet = Snapshot(deployments=(deployment(replicas=1),), nodes=(node("a"),), placements=(placed,), statuses=(newer,))
    (raised,) = plan(fleet).placements
    assert raised == placed.model_copy(update={"epoch": 5})
    assert plan(dataclasses.replace(fleet, placements=(raised,))).placements == (raised,)


def test_an_epoch_is_not_repeated_when_the_only_node_left_and_came_back() -> None:
    fleet = dataclasses.replace(left(running((deployment(),), (node("a"),)), Phase.STOPPED), nodes=())
    gone = planned(fleet, plan(fleet))
    assert gone.placements == ()
    back = dataclasses.replace(gone, nodes=(node("a"),))
    assert told(plan(back)) == [("chat-aaaaa-0", 2, "a", ("cpu",), "serve")]


DOCKER = ContainerRuntime(version="28.0")
BOXED: dict[str, Any] = {"engine": "vllm", "backend": "docker", "docker_image": "x"}


def with_docker(node: Node, runtime: ContainerRuntime | None = DOCKER, **kinds: int) -> Node:
    """`kinds`: so many devices more of each."""
    more = [Device(id=f"{k}:{i}", kind=k, name=k, memory_bytes=1) for k, count in kinds.items() for i in range(count)]
    return node.model_copy(update={"containers": runtime, "devices": (*node.devices, *more)})


@pytest.mark.parametrize(
    ("spec", "nodes", "expected"),
    [
        ({}, [node("a"), with_docker(node("b", engines=()))], ("b", ("cpu",))),
        ({}, [with_docker(node("a")), with_docker(node("b", cuda=1))], ("b", ("cuda:0",))),
        ({}, [with_docker(node("a"), npu=2)], ("a", ("npu:0",))),
        ({}, [with_docker(node("a"), sim=1)], ("a", ("cpu",))),
        ({"device": "cpu"}, [with_docker(node("a", cuda=1))], ("a", ("cpu",))),
        (
            {"device": "0,1"},
            [with_docker(node("a", cuda=1)), with_docker(node("b", cuda=2))],
            ("b", ("cuda:0", "cuda:1")),
        ),
        ({"device": "npu:1,npu:0"}, [with_docker(node("a", cuda=2), npu=2)], ("a", ("npu:1", "npu:0"))),
        ({"tensor_parallel_size": 2}, [with_docker(node("a", cuda=1), rocm=2)], ("a", ("rocm:0", "rocm:1"))),
    ],
)
def test_a_container_goes_where_docker_and_its_devices_are(
    spec: dict[str, Any], nodes: list[Node], expected: tuple[str, tuple[str, ...]]
) -> None:
    wanted = plan(Snapshot(deployments=(deployment(**{**BOXED, **spec}),), nodes=tuple(nodes)))
    assert [(p.node, p.devices) for p in wanted.placements] == [expected]
    assert wanted.refusals == ()


@pytest.mark.parametrize(
    ("spec", "offered", "reason"),
    [
        ({}, node("a"), "has not told whether it has Docker"),
        (
            {},
            with_docker(node("a"), ContainerRuntime(trouble="nobody listens at x; start Docker")),
            "cannot run containers: nobody listens at x; start Docker",
        ),
        ({"device": "cuda:1"}, with_docker(node("a", cuda=1)), "has no device cuda:1 (it has cpu, cuda:0)"),
        ({"device": "cpu"}, with_docker(node("a", cuda=1, cpu=False)), "offers no cpu device"),
        (
            {"tensor_parallel_size": 2},
            with_docker(node("a", cuda=1), npu=1),
            "has 1 free accelerators of the 2 needed",
        ),
        ({"tensor_parallel_size": 2}, with_docker(node("a")), "has 0 free accelerators of the 2 needed"),
    ],
)
def test_a_node_that_takes_no_container_says_why(spec: dict[str, Any], offered: Node, reason: str) -> None:
    wanted = plan(Snapshot(deployments=(deployment(**{**BOXED, **spec}),), nodes=(offered,)))
    assert [(r.missing, r.reasons) for r in wanted.refusals] == [(1, {"a": reason})]


def test_containers_and_native_engines_share_a_node_s_devices() -> None:
    native = deployment("first", device="cuda:0")
    boxed = deployment("second", uid="bbbbb", replicas=2, **BOXED)
    wanted = plan(Snapshot(deployments=(native, boxed), nodes=(with_docker(node("a", cuda=2)),)))
    assert [(p.deployment, p.devices) for p in wanted.placements] == [("first", ("cuda:0",)), ("second", ("cuda:1",))]
    taken = "cuda:0 is taken by first-aaaaa-0; cuda:1 is taken by second-bbbbb-0"
    assert [r.reasons for r in wanted.refusals] == [{"a": f"has 0 free accelerators of the 1 needed; {taken}"}]


def test_a_container_stays_where_it_is_when_docker_has_trouble() -> None:
    """What runs is not known to have ended."""
    fleet = running((deployment(**BOXED),), (with_docker(node("a")), with_docker(node("b"))))
    troubled = with_docker(node("a"), ContainerRuntime(version="28.0", trouble="it does not answer"))
    later = dataclasses.replace(fleet, nodes=(troubled, with_docker(node("b"))))
    assert plan(later).placements == fleet.placements


@pytest.mark.parametrize(
    ("there", "wanted", "reason"),
    [
        ({"pressure": ("disk /: 1 % left",)}, {"max_model_len": 64}, "takes nothing new: disk /: 1 % left"),
        ({"fleet_trouble": "fleet b"}, {"max_model_len": 64}, "goes by another store: fleet b"),
        ({}, BOXED, "has not told whether it has Docker"),
        ({"containers": ContainerRuntime(trouble="silent")}, BOXED, "cannot run containers: silent"),
    ],
)
def test_what_serves_is_not_ended_for_a_successor_that_would_not_start(
    there: dict[str, Any], wanted: dict[str, Any], reason: str
) -> None:
    fleet = running((deployment(),), (node("a", cuda=1, cpu=False),))
    fleet = dataclasses.replace(
        fleet,
        nodes=(fleet.nodes[0].model_copy(update=there),),
        deployments=(deployment(generation=2, **wanted),),
    )
    told_now = plan(fleet)
    assert told_now.placements == fleet.placements
    assert [r.reasons for r in told_now.refusals] == [{"a": reason}]


def test_a_container_does_not_take_over_simulated_devices() -> None:
    devices = (Device(id="sim:0", kind="sim", name="simulated", memory_bytes=1),)
    fleet = running((deployment(),), (with_docker(node("a").model_copy(update={"devices": devices})),))
    assert [p.devices for p in fleet.placements] == [("sim:0",)]
    fleet = dataclasses.replace(fleet, deployments=(deployment(generation=2, **BOXED),))
    assert plan(fleet).placements == fleet.placements


def test_what_one_gives_up_for_its_own_successor_is_not_taken_by_an_equal() -> None:
    """y needs the devices of both its replicas for a wider one; x, whose name comes first, wants the same two."""
    y = deployment("y", uid="yyyyy", replicas=2)
    fleet = Snapshot(deployments=(y,), nodes=(node("c", cuda=2, cpu=False),))
    fleet = with_agents_work(planned(fleet, plan(fleet)), "c")
    x, wider = deployment("x", uid="xxxxx", device="0,1"), deployment("y", 2, uid="yyyyy", device="0,1")
    fleet = dataclasses.replace(fleet, deployments=(x, wider))
    for _ in range(5):
        wanted = plan(fleet)
        assert plan(planned(fleet, wanted)) == wanted
        assert next((r.deployment, r.waits_for) for r in wanted.refusals) == ("x", "")
        fleet = with_agents_work(planned(fleet, wanted), "c")
    assert [(p.deployment, p.generation, p.devices) for p in fleet.placements] == [("y", 2, ("cuda:0", "cuda:1"))]


def test_scaling_down_past_what_was_started_for_a_node_that_left_is_done_at_once() -> None:
    nodes = tuple(node(name) for name in "abc")
    fleet = Snapshot(deployments=(deployment(replicas=3),), nodes=nodes)
    fleet = planned(fleet, plan(fleet))
    fewer = dataclasses.replace(fleet, deployments=(deployment(generation=2, replicas=1),), nodes=nodes[1:])
    wanted = plan(fewer)
    assert [p.intent for p in wanted.placements] == [Intent.SERVE]
    assert plan(planned(fewer, wanted)) == wanted
