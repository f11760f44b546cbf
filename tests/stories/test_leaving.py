"""A worker that drains at its end: a real etcd, a real agent; the test is the control plane."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from deepinfer.fleet import keys
from deepinfer.fleet.resources import Intent, Node, Phase, Placement
from deepinfer.fleet.snapshot import Snapshot
from deepinfer.fleet.spec import DeploymentSpec, EngineKind
from deepinfer.fleet.store import EtcdStore
from tests.alive import is_alive
from tests.fleet_values import placement
from tests.worker_process import Worker, in_phase, put, until

SIM = DeploymentSpec(model="org/model", engine=EngineKind.SIM)


def simulated(replica: int, intent: Intent = Intent.SERVE) -> Placement:
    return placement(replica=replica, intent=intent).model_copy(update={"spec": SIM})


@pytest.fixture
async def worker(tmp_path: Path, etcd: str) -> AsyncIterator[Worker]:
    worker = Worker(tmp_path, etcd, more_arguments=("--drain", "--label", "zone=a"))
    yield worker
    await worker.clean_up()


def leaving(fleet: Snapshot) -> Node | None:
    return next((node for node in fleet.nodes if node.leaving), None)


async def asked_to_leave(worker: Worker, store: EtcdStore) -> None:
    assert worker.process is not None
    worker.process.process.send_signal(signal.SIGTERM)
    assert await until(store, leaving)


async def test_it_goes_when_everything_has_been_moved_away(worker: Worker, store: EtcdStore) -> None:
    await worker.start()
    await put(store, simulated(0), simulated(1))
    first = await until(store, in_phase(simulated(0), Phase.READY))
    second = await until(store, in_phase(simulated(1), Phase.READY))
    (node,) = await until(store, lambda fleet: fleet.nodes)
    assert node.labels == {"zone": "a"} and not node.leaving
    assert worker.process is not None

    await asked_to_leave(worker, store)
    await worker.process.line_with(f"leaving when {first.id}, {second.id} has been moved away")
    await put(store, simulated(2))  # from before its leader had read that
    held = await until(store, in_phase(simulated(2), Phase.PREPARING))
    assert held.message == "waiting: node-1 starts nothing new (its worker was told to leave)"
    await put(store, simulated(0, Intent.DRAIN))
    await worker.process.line_with(f"leaving when {second.id}, {held.id} has been moved away")
    assert not is_alive(first.pid or 0) and is_alive(second.pid or 0)
    await put(store, simulated(1, Intent.DRAIN))
    await store.commit({keys.placement("node-1", held.id): None})
    await worker.process.line_with("leaving: nothing runs here any more")
    assert await worker.process.ended() == 0
    fleet = await until(store, lambda fleet: fleet)
    assert (fleet.nodes, fleet.statuses, worker.engines()) == ((), (), [])


async def test_an_empty_node_goes_at_once(worker: Worker, store: EtcdStore) -> None:
    await worker.start()
    assert await worker.end(signal.SIGTERM) == 0


async def test_a_second_sigterm_leaves_at_once_and_a_new_worker_stays(worker: Worker, store: EtcdStore) -> None:
    await worker.start()
    await put(store, simulated(0))
    status = await until(store, in_phase(simulated(0), Phase.READY))
    await asked_to_leave(worker, store)
    assert await worker.end(signal.SIGTERM) == 0
    assert is_alive(status.pid or 0)
    await worker.start()
    await until(store, lambda fleet: [node for node in fleet.nodes if not node.leaving])
    assert [process.pid for process in worker.engines()] == [status.pid]


async def test_ctrl_c_while_it_waits_ends_its_engines(worker: Worker, store: EtcdStore) -> None:
    await worker.start()
    await put(store, simulated(0))
    status = await until(store, in_phase(simulated(0), Phase.READY))
    await asked_to_leave(worker, store)
    assert await worker.end(signal.SIGINT) == 0
    assert not is_alive(status.pid or 0)


async def test_at_the_deadline_it_goes_and_says_what_it_leaves(worker: Worker, store: EtcdStore) -> None:
    worker.more_arguments = ()
    worker.more_config = "drain_on_stop = true\ndrain_deadline_seconds = 1\n"
    await worker.start()
    await put(store, simulated(0))
    status = await until(store, in_phase(simulated(0), Phase.READY))
    await asked_to_leave(worker, store)
    assert worker.process is not None
    await worker.process.line_with(f"leaving {status.id}, not moved away after 1 s; it runs on for the next worker")
    assert await worker.process.ended() == 0
    assert is_alive(status.pid or 0)
