"""A node's life, with a real etcd, a real agent process and real engine processes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deepinfer.engine_shim.client import EngineCall, EngineClient
from deepinfer.fleet import keys
from deepinfer.fleet.resources import Intent, Phase, Placement, ReplicaStatus
from deepinfer.fleet.spec import DeploymentSpec, EngineKind
from deepinfer.fleet.store import EtcdStore
from tests.alive import is_alive
from tests.etcd_process import EtcdProcess
from tests.fleet import eventually
from tests.fleet_values import placement
from tests.worker_process import Worker, in_phase, put, telling, until


def simulated(epoch: int = 1, replica: int = 0, intent: Intent = Intent.SERVE, **spec: Any) -> Placement:
    wanted = DeploymentSpec(model="org/model", engine=EngineKind.SIM, **spec)
    return placement(epoch=epoch, replica=replica, intent=intent).model_copy(update={"spec": wanted})


CHAT = simulated()


@pytest.fixture
async def worker(tmp_path: Path, etcd: str, store: EtcdStore) -> AsyncIterator[Worker]:
    worker = Worker(tmp_path, etcd)
    yield worker
    await worker.clean_up()


async def running(worker: Worker, store: EtcdStore, wanted: Placement = CHAT) -> ReplicaStatus:
    await worker.start()
    await put(store, wanted)
    return await until(store, in_phase(wanted, Phase.READY))


def exists(pid: int | None) -> bool:
    return pid is not None and is_alive(pid)


async def test_a_placement_becomes_an_engine_that_answers(worker: Worker, store: EtcdStore) -> None:
    status = await running(worker, store)
    assert status.endpoint is not None and exists(status.pid)
    client = EngineClient(status.endpoint)
    info = await client.info()
    await client.close()
    assert (info.placement, info.epoch, info.pid) == (CHAT.id, 1, status.pid)


async def test_a_node_tells_what_it_offers(worker: Worker, store: EtcdStore) -> None:
    await worker.start()
    (node,) = await until(store, lambda fleet: fleet.nodes)
    assert node.devices[0].id == "cpu" and node.devices[0].memory_bytes > 0
    assert EngineKind.SIM in [engine.kind for engine in node.engines]


async def test_a_record_that_an_older_version_wrote_is_written_anew(worker: Worker, store: EtcdStore) -> None:
    await worker.start()
    (node,) = await until(store, lambda fleet: fleet.nodes)
    await worker.end(signal.SIGKILL)
    older = json.loads(node.to_json()) | {"engines": ["sim"]}
    await store.commit({keys.node("node-1"): json.dumps(older).encode()})
    assert await until(store, lambda fleet: fleet.unreadable)
    await worker.start()
    (again,) = await until(store, lambda fleet: fleet.nodes)
    assert (again.instance, again.engines) == (node.instance, node.engines)


async def test_a_killed_engine_comes_back_and_a_killed_agent_finds_it_again(worker: Worker, store: EtcdStore) -> None:
    first = await running(worker, store)
    assert first.pid is not None
    os.kill(first.pid, signal.SIGKILL)
    failed = await until(store, telling(CHAT, "killed by SIGKILL", f"deepinfer logs {CHAT.id}"))
    assert failed.phase is Phase.RESTARTING and failed.endpoint is None
    second = await until(store, in_phase(CHAT, Phase.READY))
    assert (second.restarts, second.pid != first.pid, exists(second.pid)) == (1, True, True)

    told = await store.read(keys.status("node-1", CHAT.id))
    await worker.end(signal.SIGKILL)
    assert exists(second.pid)
    await worker.start()
    await put(store, simulated(replica=1))
    await until(store, in_phase(simulated(replica=1), Phase.READY))
    assert (await store.read(keys.status("node-1", CHAT.id))).entries == told.entries  # its endpoint never left
    assert exists(second.pid) and len(worker.engines()) == 2


async def everything(store: EtcdStore) -> Any:
    return await until(store, lambda fleet: fleet)


async def test_an_agent_killed_while_it_starts_an_engine_makes_no_second(worker: Worker, store: EtcdStore) -> None:
    await worker.start()
    await put(store, CHAT)
    (engine,) = eventually(worker.engines)
    await worker.end(signal.SIGKILL)
    await worker.start()
    status = await until(store, in_phase(CHAT, Phase.READY))
    assert [p.pid for p in worker.engines()] == [status.pid] == [engine.pid]


async def test_an_engine_that_died_while_no_agent_looked_is_replaced(worker: Worker, store: EtcdStore) -> None:
    first = await running(worker, store)
    assert first.pid is not None
    await worker.end(signal.SIGKILL)
    os.kill(first.pid, signal.SIGKILL)
    await worker.start()
    second = await until(store, lambda fleet: next((s for s in fleet.statuses if s.pid not in (None, first.pid)), None))
    assert second.restarts == 1


async def test_a_drained_placement_leaves_nothing(worker: Worker, store: EtcdStore) -> None:
    status = await running(worker, store)
    await put(store, simulated(intent=Intent.DRAIN))
    await until(store, lambda fleet: not fleet.statuses)
    assert not exists(status.pid) and worker.engines() == []
    assert not (worker.home / "state/node-1/engines" / CHAT.id).exists()


async def test_a_drained_engine_finishes_its_running_request(worker: Worker, store: EtcdStore) -> None:
    slow = simulated(engine_args={"seconds_per_output_token": 0.02})
    status = await running(worker, store, slow)
    assert status.endpoint is not None
    client = EngineClient(status.endpoint)
    body = {"model": "chat", "prompt": "hello", "max_tokens": 60, "ignore_eos": True, "stream": True}
    answer = await client.call(EngineCall("POST", "/v1/completions", b"", (), json.dumps(body).encode()))
    pieces = answer.__aiter__()
    text = await anext(pieces)
    await put(store, slow.model_copy(update={"intent": Intent.DRAIN}))
    draining = await until(store, in_phase(slow, Phase.DRAINING))
    assert exists(draining.pid)
    async for piece in pieces:
        text += piece
    await client.close()
    assert text.count(b"data: ") >= 60 and text.endswith(b"data: [DONE]\n\n")
    await until(store, lambda fleet: not fleet.statuses)
    assert not exists(status.pid)


async def test_an_engine_that_never_gets_ready_is_ended(worker: Worker, store: EtcdStore) -> None:
    worker.start_timeout = 1
    await worker.start()
    hangs = simulated(engine_args={"load_seconds": 600})
    await put(store, hangs)
    starting = await until(store, in_phase(hangs, Phase.STARTING))
    failed = await until(store, telling(hangs, "not ready after 1 s", "trying again"))
    assert failed.phase is Phase.FAILED
    assert not exists(starting.pid)


async def test_a_placement_removed_while_the_agent_was_away_is_ended(worker: Worker, store: EtcdStore) -> None:
    status = await running(worker, store)
    await worker.end(signal.SIGKILL)
    await store.commit({keys.placement("node-1", CHAT.id): None})
    await worker.start()
    await until(store, lambda fleet: not fleet.statuses)
    assert not exists(status.pid)


async def test_a_placement_that_cannot_be_read_costs_nothing(worker: Worker, store: EtcdStore) -> None:
    status = await running(worker, store)
    await store.commit({keys.placement("node-1", CHAT.id): b"{"})
    await put(store, simulated(replica=1))
    await until(store, in_phase(simulated(replica=1), Phase.READY))
    assert exists(status.pid)


async def test_a_new_epoch_replaces_the_old_process(worker: Worker, store: EtcdStore) -> None:
    old = await running(worker, store)
    await put(store, simulated(epoch=2))
    new = await until(store, in_phase(simulated(epoch=2), Phase.READY))
    assert not exists(old.pid) and exists(new.pid) and new.restarts == 0


async def test_a_model_path_that_is_not_there_is_told(worker: Worker, store: EtcdStore) -> None:
    await worker.start()
    wanted = simulated(model_path="/no/such/model")
    await put(store, wanted)
    status = await until(store, in_phase(wanted, Phase.FAILED))
    assert "/no/such/model does not exist" in status.message
    assert worker.engines() == []


async def test_a_refused_spec_waits_for_another_epoch(worker: Worker, store: EtcdStore) -> None:
    await worker.start()
    wrong = simulated(engine_args={"no_such_argument": 1})
    await put(store, wrong)
    status = await until(store, telling(wrong, "refused its spec", "no_such_argument"))
    assert status.phase is Phase.FAILED and "trying again" not in status.message
    assert status.given_up and status.failures == 1
    await put(store, simulated(epoch=2))
    ready = await until(store, in_phase(simulated(epoch=2), Phase.READY))
    assert not ready.given_up and ready.failures == 0


async def test_sigterm_leaves_engines_and_ctrl_c_takes_them_along(worker: Worker, store: EtcdStore) -> None:
    status = await running(worker, store)
    assert await worker.end(signal.SIGTERM) == 0
    await until(store, lambda fleet: not fleet.nodes)
    assert exists(status.pid)
    await worker.start()
    assert await worker.end(signal.SIGINT) == 0
    assert worker.process is not None and f"stopping {CHAT.id}" in worker.process.text
    assert not exists(status.pid)
    stopped = in_phase(CHAT, Phase.STOPPED)(await everything(store))
    assert stopped is not None and stopped.endpoint is None


async def test_a_second_worker_of_the_same_name_or_state_is_refused(worker: Worker, store: EtcdStore) -> None:
    """And says so within a second of when it would be ready: when one is that is started with it under its own name."""
    await worker.start()
    for state, sentence in (("state", "uses the state folder"), ("other", 'is registered as "node-1"')):
        second = replace(worker, state=state, process=None)
        beside = Worker(worker.home / f"beside-{state}", worker.etcd, name=f"beside-{state}")
        beside.home.mkdir()
        try:
            refused, ready = await asyncio.gather(refused_at(second, sentence), ready_at(beside))
        finally:
            await beside.clean_up()
        assert refused - ready < 1
    assert worker.process is not None and worker.process.process.returncode is None


async def test_a_record_of_the_node_that_cannot_be_read_is_waited_for(worker: Worker, store: EtcdStore) -> None:
    await store.commit({keys.node("node-1"): b"{"})
    await worker.begin()
    assert worker.process is not None
    await worker.process.line_with("nobody knows whether another worker has this name; delete that key with etcdctl")
    await store.commit({keys.node("node-1"): None})
    await worker.process.line_with("deepinfer worker node-1: ready")


async def refused_at(worker: Worker, sentence: str) -> float:
    await worker.begin()
    assert worker.process is not None
    await worker.process.line_with(sentence)
    said = time.monotonic()
    assert await worker.process.ended(5) == 1  # Python's own end takes half a second
    return said


async def ready_at(worker: Worker) -> float:
    await worker.start()
    return time.monotonic()


async def test_a_damaged_state_file_loses_no_engine(worker: Worker, store: EtcdStore) -> None:
    status = await running(worker, store)
    await worker.end(signal.SIGKILL)
    (worker.home / "state/node-1/instance").write_bytes(b"\xff\x00")
    began = time.monotonic()
    await worker.start()
    await put(store, simulated(replica=1))
    await until(store, in_phase(simulated(replica=1), Phase.READY))
    assert time.monotonic() - began < 5
    assert exists(status.pid) and len(worker.engines()) == 2


async def test_engines_are_restarted_while_the_store_is_away(tmp_path: Path, own_etcd: EtcdProcess) -> None:
    worker = Worker(tmp_path, own_etcd.endpoint)
    try:
        async with EtcdStore.connect([own_etcd.endpoint]) as store:
            first = await running(worker, store)
        assert first.pid is not None
        own_etcd.kill()
        os.kill(first.pid, signal.SIGKILL)
        (second,) = eventually(lambda: [p for p in worker.engines() if p.pid != first.pid], 30)
        own_etcd.start()
        async with EtcdStore.connect([own_etcd.endpoint]) as store:
            status = await until(store, lambda fleet: next((s for s in fleet.statuses if s.pid == second.pid), None))
            assert status.restarts == 1
    finally:
        await worker.clean_up()


async def test_an_agent_that_starts_without_the_store_keeps_what_was_placed_last(
    tmp_path: Path, own_etcd: EtcdProcess
) -> None:
    """Both what crashed while no agent looked and what crashes later; what was counted before is not forgotten."""
    worker, other = Worker(tmp_path, own_etcd.endpoint), simulated(replica=1)
    try:
        async with EtcdStore.connect([own_etcd.endpoint]) as store:
            chat = await running(worker, store)
            await put(store, other)
            first = await until(store, in_phase(other, Phase.READY))
            assert first.pid is not None
            os.kill(first.pid, signal.SIGKILL)
            second = await until(
                store, lambda fleet: next((s for s in fleet.statuses if s.restarts == 1 and s.pid), None)
            )
            await until(store, in_phase(other, Phase.READY))
        assert chat.pid is not None and second.pid is not None
        await worker.end(signal.SIGKILL)
        own_etcd.kill()
        os.kill(second.pid, signal.SIGKILL)
        await worker.begin()
        (again,) = eventually(lambda: [p for p in worker.engines() if p.pid not in (chat.pid, second.pid)], 30)
        os.kill(chat.pid, signal.SIGKILL)
        gone = {chat.pid, second.pid, again.pid}
        (chat_again,) = eventually(lambda: [p for p in worker.engines() if p.pid not in gone], 30)
        own_etcd.start()
        async with EtcdStore.connect([own_etcd.endpoint]) as store:
            pids = {again.pid, chat_again.pid}
            found = await until(store, lambda fleet: {s.pid for s in fleet.statuses if s.phase is Phase.READY} == pids)
            assert found and len(worker.engines()) == 2
            restarts = {status.id: status.restarts for status in (await everything(store)).statuses}
            assert restarts == {CHAT.id: 1, other.id: 2}
    finally:
        await worker.clean_up()


async def registered_anew(store: EtcdStore, before: int) -> None:
    async with asyncio.timeout(20), aclosing(store.changes(keys.NODES)) as changes:
        async for _ in changes:
            if (await store.read(keys.NODES)).mod_revision(keys.node("node-1")) not in (0, before):
                return


async def test_a_lost_lease_costs_no_engine(tmp_path: Path, own_etcd: EtcdProcess) -> None:
    worker = Worker(tmp_path, own_etcd.endpoint)
    try:
        async with EtcdStore.connect([own_etcd.endpoint]) as store:
            status = await running(worker, store)
            before = (await store.read(keys.NODES)).mod_revision(keys.node("node-1"))
            own_etcd.pause()
            assert worker.process is not None
            await worker.process.line_with("its engines keep running")
            own_etcd.resume()
            await registered_anew(store, before)
            assert exists(status.pid) and [p.pid for p in worker.engines()] == [status.pid]
    finally:
        await worker.clean_up()
