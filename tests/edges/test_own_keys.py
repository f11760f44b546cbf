"""What a node knows of the store, on a real etcd: when it asks again, and into which store it never writes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from deepinfer.agent.membership import Membership
from deepinfer.agent.node_agent import NodeAgent
from deepinfer.agent.own_keys import OwnKeys
from deepinfer.agent.placement_note import PlacementNote
from deepinfer.agent.plan import Wanted
from deepinfer.fleet import keys
from deepinfer.fleet.config import WorkerConfig
from deepinfer.fleet.errors import AnotherFleet, StoreConflict, StoreUnavailable
from deepinfer.fleet.identity import FleetIdentity
from deepinfer.fleet.resources import Phase
from deepinfer.fleet.spec import DeploymentSpec
from deepinfer.fleet.store import EtcdStore
from tests.etcd_process import EtcdProcess, FaultProxy
from tests.fleet_values import placement, status
from tests.small_disk import small_disk

OURS = FleetIdentity(id="a" * 16, schema=1).to_json()
THEIRS = FleetIdentity(id="b" * 16, schema=1).to_json()
CHAT = placement()
STATUS = keys.status("node-1", CHAT.id)


@pytest.fixture
def own(tmp_path: Path) -> OwnKeys:
    return OwnKeys("node-1", Membership(tmp_path))


async def put_chat(store: EtcdStore) -> None:
    await store.commit({keys.IDENTITY: OURS, keys.placement("node-1", CHAT.id): CHAT.to_json()})


async def test_what_was_read_and_written_is_not_asked_again(own_etcd: EtcdProcess, own: OwnKeys) -> None:
    async with EtcdStore.connect([own_etcd.endpoint]) as store:
        await put_chat(store)
        before = own_etcd.received()
        first = await own.read(store)
        assert (first.wanted.placements, first.wanted.reported) == ((CHAT,), frozenset())
        await own.tell(store, [status(phase=Phase.STARTING)], ())
        await own.tell(store, [status()], ())
        await own.tell(store, [status()], ())
        known = await own.read(store)
        assert own_etcd.received() - before == {"Txn": 1 + 2}  # one reading, two statuses
        assert known.statuses == {CHAT.id: status()} and known.wanted.reported == {CHAT.id}
        await own.tell(store, (), [CHAT.id])
        assert (await own.read(store)) == first
        own.doubt()
        assert (await own.read(store)) == first


async def test_another_connection_is_asked_anew(etcd: str, store: EtcdStore, own: OwnKeys) -> None:
    await own.read(store)
    await put_chat(store)
    async with EtcdStore.connect([etcd]) as another:
        assert (await own.read(another)).wanted.placements == (CHAT,)


async def test_a_store_that_became_another_fleets_is_not_written_to(store: EtcdStore, own: OwnKeys) -> None:
    await put_chat(store)
    await own.read(store)
    await store.commit({keys.IDENTITY: THEIRS})
    with pytest.raises(StoreConflict, match=keys.IDENTITY):
        await own.tell(store, [status()], ())
    with pytest.raises(AnotherFleet):
        await own.tell(store, [status()], ())
    assert STATUS not in (await store.read(keys.FLEET)).entries
    assert own.known is not None and own.known.wanted.placements == (CHAT,)


async def test_a_write_without_an_answer_is_a_reason_to_read(etcd: str, store: EtcdStore, own: OwnKeys) -> None:
    proxy = FaultProxy(etcd)
    async with proxy.running(), EtcdStore.connect([proxy.endpoint], timeout=1) as ours:
        await put_chat(store)
        await own.read(ours)
        proxy.block()
        with pytest.raises(StoreUnavailable):
            await own.tell(ours, [status()], ())
        proxy.heal()
        await store.commit({STATUS: b"theirs"})
        await own.tell(ours, [status()], ())
    assert (await store.read(STATUS)).values[STATUS] == status().to_json()


def mode_of(file: Path) -> int:
    return file.stat().st_mode & 0o777


async def test_the_next_agent_without_a_store_recalls_what_was_read_last(store: EtcdStore, tmp_path: Path) -> None:
    await put_chat(store)
    await OwnKeys("node-1", Membership(tmp_path), PlacementNote(tmp_path)).read(store)
    assert mode_of(tmp_path / "placements.json") == 0o600  # specs hold tokens
    following = OwnKeys("node-1", Membership(tmp_path), PlacementNote(tmp_path))
    following.recall()
    assert following.known is not None
    assert following.known.wanted == Wanted((CHAT,), is_recalled=True)
    assert not (await following.read(store)).wanted.is_recalled
    following.recall()
    assert not following.known.wanted.is_recalled


@pytest.mark.parametrize("harm", [b"", b"\xff\x00", b"{", b'{"fleet": "%s", "placements": [{}]}' % (b"a" * 16)])
def test_a_damaged_note_is_none(tmp_path: Path, caplog: pytest.LogCaptureFixture, harm: bytes) -> None:
    note = PlacementNote(tmp_path)
    note.write("a" * 16, [CHAT])
    assert PlacementNote(tmp_path).read("a" * 16) == (CHAT,)
    assert PlacementNote(tmp_path).read("b" * 16) is None
    (tmp_path / "placements.json").write_bytes(harm)
    assert PlacementNote(tmp_path).read("a" * 16) is None
    assert "cannot be understood" in caplog.text
    note.write("a" * 16, [])
    assert note.read("a" * 16) == ()


def test_on_a_full_disk_the_older_note_stays_and_is_replaced_once_there_is_room(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "size=64k") as disk:
        note = PlacementNote(disk.folder)
        note.write("a" * 16, [CHAT])
        disk.fill()
        note.write("a" * 16, [])
        assert PlacementNote(disk.folder).read("a" * 16) == (CHAT,)
        disk.make_room()
        note.write("a" * 16, [])
        assert PlacementNote(disk.folder).read("a" * 16) == ()


@asynccontextmanager
async def followed(agent: NodeAgent, store: EtcdStore) -> AsyncIterator[asyncio.TaskGroup]:
    """As a worker does; the first news, that a watch is set up, has come."""
    async with asyncio.TaskGroup() as tasks:
        following = tasks.create_task(agent.follow(store, keys.placement("node-1", "")))
        await agent.changed.wait()
        yield tasks
        following.cancel()


async def no_files(spec: DeploymentSpec, progress: object) -> Path | None:
    return None


@pytest.fixture
def agent(tmp_path: Path) -> NodeAgent:
    """It may start nothing."""
    own_keys = OwnKeys("node-1", Membership(tmp_path))
    agent = NodeAgent("node-1", WorkerConfig(), tmp_path, {}, no_files, own_keys=own_keys)
    agent.close(("of a test",))
    agent.changed.clear()
    return agent


async def test_a_change_and_a_break_of_the_watch_are_reasons_to_read(own_etcd: EtcdProcess, agent: NodeAgent) -> None:
    proxy = FaultProxy(own_etcd.endpoint)
    async with (
        EtcdStore.connect([own_etcd.endpoint]) as store,
        proxy.running(),
        EtcdStore.connect([proxy.endpoint]) as ours,
        followed(agent, ours) as tasks,
    ):
        await agent.converge(ours, tasks)
        assert not agent.holds
        agent.changed.clear()
        await put_chat(store)
        await agent.changed.wait()
        await agent.converge(ours, tasks)
        assert agent.holds == (CHAT.id,)

        await store.commit({STATUS: None})  # as after a restore; this watch does not tell of it
        await agent.converge(ours, tasks)
        assert STATUS not in (await store.read(STATUS)).entries
        proxy.cut()
        while STATUS not in (await store.read(STATUS)).entries:
            await agent.converge(ours, tasks)
