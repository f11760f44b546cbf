"""The two servers of `benchmarks.vllm`: a bare vLLM, and deepinfer with the same vLLM behind it. Both log to files."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from deepinfer.engine_shim.engines.vllm.environment import OPENMP, SPIN_MILLISECONDS
from deepinfer.fleet.places import cache_dir, engines_dir
from tests.bare_vllm import ON_CPU, BareVllm
from tests.fleet import Fleet

MODEL = "smollm2"
START_SECONDS = 300


@dataclass(frozen=True)
class Side:
    """A server that answers. `pids` are the processes that serve HTTP, not those that compute the tokens."""

    name: str
    port: int
    pids: tuple[int, ...]

    def cpu_seconds(self) -> float:
        """Spent so far by all threads, in user and kernel mode."""
        return sum(map(_cpu_seconds, self.pids))


def _cpu_seconds(pid: int) -> float:
    """To the nanosecond on Linux, by the process's own clock (clock_getcpuclockid(3)); elsewhere in steps of 10 ms."""
    if sys.platform == "linux":
        return time.clock_gettime((~pid << 3) | 2)
    spent = psutil.Process(pid).cpu_times()
    return spent.user + spent.system


def installed_vllm() -> Path:
    """The interpreter of the newest vLLM for the CPU that `deepinfer engine install` made."""
    found = sorted(engines_dir().glob("vllm-*-cpu/bin/python"))
    if not found:
        raise SystemExit(f"No vLLM is installed in {engines_dir()}; run `deepinfer engine install vllm --cpu`.")
    return found[-1]


def shims_openmp(python: Path) -> dict[str, str]:
    """What deepinfer's shim sets for the processes that compute."""
    return {"LD_PRELOAD": str(python.parent.parent / OPENMP), "KMP_BLOCKTIME": SPIN_MILLISECONDS}


@contextmanager
def bare_vllm(name: str, home: Path, dtype: str, python: Path | None, *, same_openmp: bool) -> Iterator[Side]:
    """vLLM's own OpenAI server: the API server's process counts, its EngineCore does not."""
    python = python or installed_vllm()
    environment = ON_CPU | (shims_openmp(python) if same_openmp else {})
    flags = {
        "model": cache_dir() / "models" / "smollm2-135m-instruct",
        "served_model_name": MODEL,
        "dtype": dtype,
        "max_model_len": 2048,
        "enforce_eager": True,
    }
    server = BareVllm(python, home / f"{name}.log", flags, environment)
    try:
        wait_until(name, server.is_ready, lambda: "starting")
        yield Side(name, server.port, (server.pid,))
    finally:
        print(f"{name}: stopping", flush=True)
        server.stop()


@contextmanager
def deepinfer_vllm(name: str, home: Path, dtype: str) -> Iterator[Side]:
    """`serve` with its etcd, a worker and one replica: `serve` and the shim count, the agent and EngineCore do not."""
    fleet = Fleet(home)
    try:
        fleet.start_serve()
        fleet.start_worker()
        fleet.deploy(
            model=MODEL,
            engine="vllm",
            backend="native",
            device="cpu",
            dtype=dtype,
            max_model_len=2048,
            engine_args={"enforce_eager": True},
            env=ON_CPU,
        )
        wait_until(name, lambda: _status(fleet)["phase"] == "ready", lambda: json.dumps(_status(fleet)))
        (replica,) = fleet.wait_ready(MODEL)
        assert fleet.serve is not None
        yield Side(name, fleet.port, (fleet.serve.pid, replica["pid"]))
    finally:
        print(f"{name}: stopping", flush=True)
        fleet.close()


def _status(fleet: Fleet) -> dict[str, object]:
    status: dict[str, object] = fleet.get(f"/v1/deployments/{MODEL}")["status"]
    if status["phase"] == "failed":
        raise SystemExit(f"The deployment failed: {json.dumps(status)}")
    return status


def wait_until(name: str, ready: Callable[[], bool], doing: Callable[[], str]) -> None:
    for second in range(START_SECONDS):
        if ready():
            print(f"{name}: ready", flush=True)
            return
        if second % 5 == 0:
            print(f"{name}: {second} s: {doing()}", flush=True)
        time.sleep(1)  # other processes are watched from outside: there is no event to wait for
    raise SystemExit(f"{name} was not ready after {START_SECONDS} s.")
