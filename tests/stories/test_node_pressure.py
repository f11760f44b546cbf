"""A node that runs out of disk or memory: a real agent on a real small disk, and under a real limit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deepinfer.agent.node_pressure import NodePressure, disk_of
from deepinfer.agent.pressure import Limits
from deepinfer.engine_shim.client import EngineCall, EngineClient
from deepinfer.fleet.resources import Node, Phase, Placement, ReplicaStatus
from deepinfer.fleet.snapshot import Snapshot
from deepinfer.fleet.spec import DeploymentSpec, EngineKind
from deepinfer.fleet.store import EtcdStore
from tests.alive import is_alive
from tests.fleet_values import placement
from tests.memory_limit import MemoryLimit, memory_limit
from tests.small_disk import SmallDisk, small_disk
from tests.worker_process import Worker, in_phase, put, telling, until

HOLD_MEMORY = "kept = b'1' * int(input()); print('held', flush=True); input()"


def simulated(replica: int, epoch: int = 1) -> Placement:
    spec = DeploymentSpec(model="org/model", engine=EngineKind.SIM)
    return placement(replica=replica, epoch=epoch).model_copy(update={"spec": spec})


OLD, NEW = simulated(0), simulated(1)


@pytest.fixture
async def worker(tmp_path: Path, etcd: str) -> AsyncIterator[Worker]:
    worker = Worker(tmp_path, etcd)
    yield worker
    await worker.clean_up()


@pytest.fixture
def disk(tmp_path: Path, worker: Worker) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / worker.state) as disk:
        yield disk


def pressed(words: str) -> Callable[[Snapshot], Node | None]:
    return lambda fleet: next((node for node in fleet.nodes if words in " ".join(node.pressure)), None)


def relieved(fleet: Snapshot) -> Node | None:
    return next((node for node in fleet.nodes if not node.pressure), None)


@contextmanager
def hog(limit: MemoryLimit, bytes_held: int) -> Iterator[None]:
    """A process under that limit which holds so much."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD_MEMORY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdin is not None and holder.stdout is not None
    try:
        limit.take(holder.pid)
        print(bytes_held, file=holder.stdin, flush=True)
        assert holder.stdout.readline() == "held\n"
        yield
    finally:
        holder.kill()
        holder.communicate()


async def answer_of(status: ReplicaStatus) -> bytes:
    assert status.endpoint is not None
    client = EngineClient(status.endpoint)
    body = json.dumps({"model": "chat", "prompt": "hello", "max_tokens": 4}).encode()
    answer = await client.call(EngineCall("POST", "/v1/completions", b"", (), body))
    text = b"".join([piece async for piece in answer])
    await client.close()
    return text


async def test_a_full_disk_holds_back_what_is_new_and_costs_nothing_that_runs(
    worker: Worker, disk: SmallDisk, store: EtcdStore
) -> None:
    await worker.start()
    await put(store, OLD)
    old = await until(store, in_phase(OLD, Phase.READY))
    disk.fill()
    node = await until(store, pressed(f"MiB of 16.0 MiB left at {disk.folder}/node-1"))
    await put(store, NEW)
    held = await until(store, telling(NEW, "node-1 starts nothing new"))
    assert held.phase is Phase.PREPARING and node.pressure[0] in held.message
    assert b'"finish_reason":"length"' in await answer_of(old)

    await worker.end(signal.SIGKILL)
    await worker.start()  # its state is whole, and the engine is adopted
    assert (await until(store, pressed("left at"))).instance == node.instance
    assert await until(store, in_phase(OLD, Phase.READY)) == old and is_alive(old.pid or 0)

    disk.make_room()
    await until(store, relieved)
    assert (await until(store, in_phase(NEW, Phase.READY))).restarts == 0
    assert worker.process is not None and "Traceback" not in worker.process.text


async def test_an_engine_that_dies_while_the_disk_is_full_comes_back(
    worker: Worker, disk: SmallDisk, store: EtcdStore
) -> None:
    await worker.start()
    await put(store, OLD)
    old = await until(store, in_phase(OLD, Phase.READY))
    disk.fill()
    await until(store, pressed("left at"))
    os.kill(old.pid or 0, signal.SIGKILL)
    await until(store, lambda fleet: [s for s in fleet.statuses if s.phase is Phase.READY and s.restarts == 1])


async def test_what_cannot_be_started_for_want_of_room_says_so_and_starts_once_there_is(
    worker: Worker, disk: SmallDisk, store: EtcdStore
) -> None:
    worker.more_config = "low_disk_share = 0\n"
    await worker.start()
    disk.fill()
    await put(store, NEW)
    file = disk.folder / "node-1/engines" / NEW.id / "launch.json"
    full = f"The disk is full: {file} cannot be written; make room there"
    await until(store, telling(NEW, full, "trying again"))
    disk.make_room()
    await until(store, in_phase(NEW, Phase.READY))
    assert worker.process is not None and worker.process.process.returncode is None


async def test_a_state_folder_that_cannot_be_written_is_told(worker: Worker, disk: SmallDisk) -> None:
    assert disk_of(disk.folder, must_write=True).trouble == ""
    disk.fill()
    await worker.begin()
    assert worker.process is not None
    await worker.process.line_with(f"error: The state folder {disk.folder}/node-1 cannot be written (No space left")
    assert await worker.process.ended() == 1 and "Traceback" not in worker.process.text
    disk.only_read()
    assert disk_of(disk.folder, must_write=False).trouble == ""
    assert disk_of(disk.folder, must_write=True).trouble == "can only be read"
    await worker.begin()
    await worker.process.line_with(f"error: The state folder {disk.folder}/node-1 cannot be written (Read-only")


def test_a_folder_that_cannot_be_looked_at_is_told_and_costs_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    node = NodePressure((tmp_path / "loop",), (tmp_path,), Limits(0, 0, 0))
    node.look()
    assert node.sentences == (f"disk: {tmp_path}/loop cannot be looked at (Too many levels of symbolic links)",)


async def test_few_files_left_are_told(tmp_path: Path) -> None:
    with small_disk(tmp_path / "few", "size=16m,nr_inodes=100") as disk:
        seen = disk_of(disk.folder / "not" / "made" / "yet", must_write=True)
        assert (seen.total, seen.total_files) == (16 << 20, 100) and 90 < seen.free_files < 100


async def test_memory_that_runs_out_holds_back_what_is_new(worker: Worker, store: EtcdStore) -> None:
    await worker.start()
    await put(store, OLD)
    old = await until(store, in_phase(OLD, Phase.READY))
    assert worker.process is not None
    with memory_limit(512 << 20) as limit:
        limit.take(worker.process.process.pid)
        with hog(limit, 490 << 20):
            node = await until(store, pressed("memory of /deepinfer-test-"))
            assert " % of 512.0 MiB left" in node.pressure[0]
            await put(store, NEW)
            await until(store, telling(NEW, node.pressure[0]))
            assert is_alive(old.pid or 0)
        await until(store, relieved)
        await until(store, in_phase(NEW, Phase.READY))
        await worker.clean_up()
