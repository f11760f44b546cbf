"""The scheduler over a real etcd: what it writes, when it writes nothing, and that only a leader writes."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from deepinfer.control_plane.scheduler.scheduler import Scheduler
from deepinfer.fleet import keys
from deepinfer.fleet.convergence import keep_converging
from deepinfer.fleet.errors import StoreConflict
from deepinfer.fleet.leadership import Leadership, lead
from deepinfer.fleet.resources import Deployment, Device, Intent, Node, Phase, ReplicaStatus
from deepinfer.fleet.snapshot import Snapshot, snapshot_of
from deepinfer.fleet.spec import DeploymentSpec, EngineKind
from deepinfer.fleet.store import EtcdStore
from tests.fleet_values import installed


def deployment(replicas: int = 1, generation: int = 1) -> Deployment:
    spec = DeploymentSpec(model="m", engine=EngineKind.SIM, replicas=replicas)
    return Deployment(name="chat", uid="aaaaa", generation=generation, created_at="now", spec=spec)


def node(name: str = "a") -> Node:
    cpu = Device(id="cpu", kind="cpu", name="CPU", memory_bytes=1)
    engines = (installed(),)
    return Node(name=name, instance="i", agent_endpoint="127.0.0.1:1", devices=(cpu,), engines=engines, version="0")


async def fleet_in(store: EtcdStore) -> Snapshot:
    return snapshot_of((await store.read(keys.FLEET)).values)


async def converge(store: EtcdStore, leadership: Leadership) -> None:
    await Scheduler(store, leadership).converge()


async def leading(store: EtcdStore, name: str = "me") -> Leadership:
    """As `lead` claims it, without its lease."""
    return Leadership(name, await store.commit({keys.LEADER: name.encode()}))


async def test_a_pass_writes_what_is_missing_and_the_next_one_nothing(store: EtcdStore) -> None:
    leadership = await leading(store)
    await store.commit({keys.deployment("chat"): deployment(2).to_json(), keys.node("a"): node().to_json()})
    await converge(store, leadership)
    placements = (await fleet_in(store)).placements
    assert [(p.id, p.node, p.epoch) for p in placements] == [("chat-aaaaa-0", "a", 1), ("chat-aaaaa-1", "a", 1)]
    before = (await store.read(keys.FLEET)).revision
    await converge(store, leadership)
    assert (await store.read(keys.FLEET)).revision == before


async def test_a_refusal_is_written_and_taken_back(store: EtcdStore) -> None:
    leadership = await leading(store)
    await store.commit({keys.deployment("chat"): deployment().to_json()})
    await converge(store, leadership)
    assert [(r.deployment, r.missing, r.reasons) for r in (await fleet_in(store)).refusals] == [("chat", 1, {})]
    await store.commit({keys.node("a"): node().to_json()})
    await converge(store, leadership)
    fleet = await fleet_in(store)
    assert (len(fleet.placements), fleet.refusals) == (1, ())


async def test_a_deleted_deployment_drains_until_its_agent_has_forgotten_it(store: EtcdStore) -> None:
    leadership = await leading(store)
    await store.commit({keys.deployment("chat"): deployment().to_json(), keys.node("a"): node().to_json()})
    await converge(store, leadership)
    status = keys.status("a", "chat-aaaaa-0")
    seen = ReplicaStatus(id="chat-aaaaa-0", epoch=1, node="a", phase=Phase.READY)
    await store.commit({keys.deployment("chat"): None, status: seen.to_json()})
    await converge(store, leadership)
    assert [p.intent for p in (await fleet_in(store)).placements] == [Intent.DRAIN]
    await store.commit({status: None})
    await converge(store, leadership)
    assert (await fleet_in(store)).placements == ()


async def test_more_changes_than_a_transaction_takes_are_all_written(store: EtcdStore) -> None:
    leadership = await leading(store)
    await store.commit({keys.deployment("chat"): deployment(300).to_json(), keys.node("a"): node().to_json()})
    await converge(store, leadership)
    assert len((await fleet_in(store)).placements) == 300


async def test_a_deposed_leader_writes_nothing(store: EtcdStore) -> None:
    deposed = await leading(store, "old")
    await leading(store, "new")
    await store.commit({keys.deployment("chat"): deployment().to_json(), keys.node("a"): node().to_json()})
    with pytest.raises(StoreConflict):
        await converge(store, deposed)
    assert (await fleet_in(store)).placements == ()


class ChangesMeanwhile(EtcdStore):
    """The real store, where somebody else writes between the scheduler's reading and its commit."""

    meanwhile: dict[str, bytes | None]

    async def commit(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        if self.meanwhile:
            theirs, self.meanwhile = self.meanwhile, {}
            await super().commit(theirs)
        return await super().commit(*args, **kwargs)


async def test_what_a_decision_rests_on_must_not_have_changed(store: EtcdStore, etcd: str) -> None:
    leadership = await leading(store)
    await store.commit({keys.deployment("chat"): deployment().to_json(), keys.node("a"): node().to_json()})
    async with ChangesMeanwhile.connect([etcd]) as interrupted:
        assert isinstance(interrupted, ChangesMeanwhile)
        interrupted.meanwhile = {keys.deployment("chat"): None}
        with pytest.raises(StoreConflict):
            await converge(interrupted, leadership)
    assert (await fleet_in(store)).placements == ()


async def test_two_control_planes_make_one_plan_and_the_survivor_goes_on(store: EtcdStore) -> None:
    """Each runs the loop of serve; killing the leader's task revokes its lease, and the other one takes over."""
    news = asyncio.Event()
    events: asyncio.Queue[str] = asyncio.Queue()

    async def follow() -> None:
        async for _ in store.changes(keys.FLEET):
            news.set()

    async def work(leadership: Leadership) -> None:
        events.put_nowait(leadership.name)
        await keep_converging(partial(converge, store, leadership), news)

    async with asyncio.TaskGroup() as tasks:
        follower = tasks.create_task(follow())
        planes = {name: tasks.create_task(lead(store, name, work)) for name in ("one", "two")}
        first = await events.get()
        planes.pop(first).cancel()
        second = await events.get()
        assert second != first
        await store.commit({keys.deployment("chat"): deployment().to_json(), keys.node("a"): node().to_json()})
        async for _ in store.changes(keys.PLACEMENTS):
            if placements := (await fleet_in(store)).placements:
                break
        assert [p.id for p in placements] == ["chat-aaaaa-0"]
        for task in (follower, *planes.values()):
            task.cancel()
