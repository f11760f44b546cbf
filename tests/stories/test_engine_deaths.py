"""How engines die on a node, and what is said of it: a real agent, real engines, real signals, locks and memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from deepinfer.agent.launching import Mark
from deepinfer.agent.native.engine_process import MARK
from deepinfer.fleet.resources import Intent, Phase, Placement, ReplicaStatus
from deepinfer.fleet.snapshot import Snapshot
from deepinfer.fleet.spec import DeploymentSpec, EngineKind
from deepinfer.fleet.store import EtcdStore
from tests.alive import is_alive
from tests.fleet_values import placement
from tests.memory_limit import memory_limit
from tests.worker_process import Worker, in_phase, put, telling, until

HOLD = """
import fcntl, os, sys, time
file = open(sys.argv[1], "a")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(600)
"""


def simulated(epoch: int = 1, devices: tuple[str, ...] = ("cpu",), **engine_args: Any) -> Placement:
    spec = DeploymentSpec(model="org/model", engine=EngineKind.SIM, engine_args=engine_args)
    return placement(epoch=epoch).model_copy(update={"spec": spec, "devices": devices})


ON_DEVICE = simulated(devices=("sim:0",))


@pytest.fixture
async def worker(tmp_path: Path, etcd: str) -> AsyncIterator[Worker]:
    worker = Worker(tmp_path, etcd, more_config="stall_seconds = 2\nsimulated_devices = 2\n")
    yield worker
    await worker.clean_up()


async def ready(worker: Worker, store: EtcdStore, wanted: Placement) -> ReplicaStatus:
    await worker.start()
    await put(store, wanted)
    return await until(store, in_phase(wanted, Phase.READY))


def ready_again(wanted: Placement, old: ReplicaStatus) -> Callable[[Snapshot], ReplicaStatus | None]:
    def look(fleet: Snapshot) -> ReplicaStatus | None:
        status = in_phase(wanted, Phase.READY)(fleet)
        return status if status is not None and status.pid != old.pid else None

    return look


def lock_of(worker: Worker, device: str = "sim-0") -> Path:
    return worker.home / worker.state / worker.name / "devices" / device


@contextmanager
def holding(lock: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process of its own that has locked a simulated device."""
    lock.parent.mkdir(exist_ok=True)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(lock)],
        stdout=subprocess.PIPE,
        env={**os.environ, **environment},
        start_new_session=True,
    )
    assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
    try:
        yield holder
    finally:
        holder.kill()
        holder.wait()


async def test_a_shim_that_hangs_is_killed_and_replaced(worker: Worker, store: EtcdStore) -> None:
    old = await ready(worker, store, ON_DEVICE)
    assert old.pid is not None
    os.kill(old.pid, signal.SIGSTOP)
    told = await until(store, telling(ON_DEVICE, "It did not answer for", "trying again"), 60)
    assert told.phase is Phase.RESTARTING and told.endpoint is None
    assert not is_alive(old.pid)
    await until(store, ready_again(ON_DEVICE, old))


async def test_a_shim_that_loads_is_given_its_time(worker: Worker, store: EtcdStore) -> None:
    worker.start_timeout = 3
    await worker.start()
    hangs = simulated(load_seconds=600)
    await put(store, hangs)
    failed = await until(store, in_phase(hangs, Phase.FAILED))
    assert "It was not ready after 3 s; it had come to: simulating the loading of a model" in failed.message


async def test_a_killed_shim_leaves_no_core_on_its_device(worker: Worker, store: EtcdStore) -> None:
    old = await ready(worker, store, ON_DEVICE)
    assert old.pid is not None
    (core,) = psutil.Process(old.pid).children()
    os.kill(old.pid, signal.SIGKILL)
    new = await until(store, ready_again(ON_DEVICE, old))
    assert not is_alive(core.pid)
    assert {p.pid for p in worker.engines()} == {new.pid, *(p.pid for p in psutil.Process(new.pid).children())}


async def test_an_idle_engine_whose_core_is_killed_is_replaced(worker: Worker, store: EtcdStore) -> None:
    old = await ready(worker, store, ON_DEVICE)
    (core,) = psutil.Process(old.pid).children()
    core.kill()
    words = f"The engine failed: its core (process {core.pid}) was killed by SIGKILL; trying again 1 s later"
    told = await until(store, telling(ON_DEVICE, words))
    assert told.phase is Phase.RESTARTING
    await until(store, ready_again(ON_DEVICE, old))


async def test_a_crash_loop_is_called_so_and_getting_ready_does_not_end_it(worker: Worker, store: EtcdStore) -> None:
    status = await ready(worker, store, ON_DEVICE)
    for failures in (1, 2, 3):
        assert status.pid is not None
        os.kill(status.pid, signal.SIGKILL)
        told = await until(store, telling(ON_DEVICE, f"trying again {2 ** (failures - 1)} s later"))
        assert told.message.startswith("crash loop: 3 failures in a row; ") is (failures == 3)
        assert (told.failures, told.given_up) == (failures, False)
        status = await until(store, ready_again(ON_DEVICE, status))
    await worker.end(signal.SIGKILL)
    await worker.start()  # nor does another agent
    assert status.pid is not None
    os.kill(status.pid, signal.SIGKILL)
    told = await until(store, telling(ON_DEVICE, "crash loop: 4 failures in a row"))
    assert told.failures == 4


async def test_a_crash_loop_is_told_with_the_engines_own_error(worker: Worker, store: EtcdStore) -> None:
    await worker.start()
    breaks_python = DeploymentSpec(model="org/model", engine=EngineKind.SIM, env={"PYTHONHOME": "/nowhere"})
    fails = simulated().model_copy(update={"spec": breaks_python})
    await put(store, fails)
    told = await until(store, telling(fails, "crash loop: 3 failures in a row; The engine exited with status 1"))
    assert "ModuleNotFoundError: No module named 'encodings'" in told.message and told.failures == 3


async def test_an_engine_that_the_kernel_kills_for_its_memory_says_so(worker: Worker, store: EtcdStore) -> None:
    await worker.start()
    assert worker.process is not None
    greedy = simulated(memory_bytes=1 << 30)
    with memory_limit(512 << 20) as limit:
        limit.take(worker.process.process.pid)
        await put(store, greedy)
        words = "out of memory: the kernel killed it (memory cgroup /deepinfer-test-"
        told = await until(store, telling(greedy, words, "trying again"))
        assert told.phase is Phase.FAILED
        assert "limit 0.5 GiB" in told.message
        assert worker.process.process.returncode is None  # the engine was offered first
        await worker.clean_up()


async def test_a_kill_is_not_taken_for_want_of_memory(worker: Worker, store: EtcdStore) -> None:
    old = await ready(worker, store, simulated())
    assert old.pid is not None
    os.kill(old.pid, signal.SIGKILL)
    told = await until(store, telling(simulated(), "was killed by SIGKILL", "trying again"))
    assert "out of memory" not in told.message


async def test_a_device_that_somebody_else_holds_is_waited_for(worker: Worker, store: EtcdStore) -> None:
    await worker.start()
    with holding(lock_of(worker)) as holder:
        await put(store, ON_DEVICE)
        name = psutil.Process(holder.pid).name()
        words = f"device sim:0 is held by process {holder.pid} ({name}), which is not ours; free it or choose another"
        told = await until(store, telling(ON_DEVICE, words))
        assert told.phase is Phase.FAILED and worker.engines() == []
        other = simulated(devices=("sim:1",)).model_copy(update={"id": "other-aaaaa-0"})
        await put(store, other)
        await until(store, in_phase(other, Phase.READY))
        assert holder.poll() is None
    status = await until(store, in_phase(ON_DEVICE, Phase.READY))
    assert status.restarts == 0


async def test_a_placement_that_waits_for_its_device_can_be_withdrawn(worker: Worker, store: EtcdStore) -> None:
    await worker.start()
    with holding(lock_of(worker)) as holder:
        await put(store, ON_DEVICE)
        await until(store, telling(ON_DEVICE, f"process {holder.pid}"))
        await put(store, ON_DEVICE.model_copy(update={"intent": Intent.DRAIN}))
        await until(store, lambda fleet: not fleet.statuses)


async def test_a_left_over_of_an_older_epoch_is_ended_before_its_successor_starts(
    worker: Worker, store: EtcdStore
) -> None:
    await worker.start()
    (instance,) = worker.instances
    mark = Mark(ON_DEVICE.id, 1, instance)
    with holding(lock_of(worker), **{MARK: str(mark)}) as zombie:
        wanted = simulated(epoch=2, devices=("sim:0",))
        await put(store, wanted)
        status = await until(store, in_phase(wanted, Phase.READY))
        assert zombie.wait(5) == -signal.SIGKILL and status.epoch == 2


def oom_score(pid: int | None) -> int:
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())


async def test_a_node_offers_its_simulated_devices(worker: Worker, store: EtcdStore) -> None:
    await worker.start()
    (node,) = await until(store, lambda fleet: fleet.nodes)
    assert [device.id for device in node.devices if device.kind == "sim"] == ["sim:0", "sim:1"]


async def test_the_kernel_is_offered_engines_before_their_agent(worker: Worker, store: EtcdStore) -> None:
    status = await ready(worker, store, ON_DEVICE)
    (core,) = psutil.Process(status.pid).children()
    assert oom_score(status.pid) == oom_score(core.pid) == 200
    assert worker.process is not None
    assert oom_score(worker.process.process.pid) in (-900, oom_score(os.getpid()))  # the latter without the privilege
