"""The two servers of `benchmarks.vllm`: a bare vLLM, and deepinfer with the same vLLM behind it. Both log to files."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.free_port import free_port
from deepinfer.fleet.die_with_parent import dying_with_me
from deepinfer.fleet.places import data_dir
from tests.fleet import Fleet

MODEL = "smollm2"
MAX_MODEL_LEN = 2048
ENGINE_ARGS: dict[str, Any] = {"enforce_eager": True}
ENV = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"}
START_SECONDS = 300.0


@dataclass(frozen=True)
class Side:
    """A server that answers. `pids` are the processes that serve HTTP, not those that compute the tokens."""

    name: str
    port: int
    pids: tuple[int, ...]

    def cpu_seconds(self) -> float:
        """Spent so far by all threads, in user and kernel mode. Counted by the kernel in steps of 10 ms."""
        times = [psutil.Process(pid).cpu_times() for pid in self.pids]
        return sum(spent.user + spent.system for spent in times)


def engines_dir() -> Path:
    """Where `deepinfer engine install` puts environments."""
    return Path(os.environ.get("DEEPINFER_ENGINES_DIR") or data_dir() / "engines")


def installed_vllm() -> Path:
    """The interpreter of the installed vLLM for the CPU."""
    found = sorted(engines_dir().glob("vllm-*-cpu/bin/python"))
    if not found:
        raise SystemExit(f"No vLLM is installed in {engines_dir()}; run `deepinfer engine install vllm --cpu`.")
    return found[-1]


@contextmanager
def bare_vllm(name: str, python: Path, model_path: Path, home: Path) -> Iterator[Side]:
    """vLLM's own OpenAI server: the API server's process counts, its EngineCore does not."""
    port, log = free_port(), home / f"{name}.log"
    flags = {"model": model_path, "served-model-name": MODEL, "host": "127.0.0.1", "port": port}
    flags |= {"dtype": "bfloat16", "max-model-len": MAX_MODEL_LEN}
    command = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--enforce-eager"]
    command += [f"--{flag}={value}" for flag, value in flags.items()]
    with log.open("wb") as out:
        process = subprocess.Popen(
            dying_with_me(command),
            env={**os.environ, **ENV, "HF_HUB_OFFLINE": "1"},
            stdout=out,
            stderr=out,
            start_new_session=True,  # Ctrl-C is this bench's alone; it stops the server itself
        )
    try:
        _wait_for_health(name, port, process, log)
        yield Side(name, port, (process.pid,))
    finally:
        print(f"{name}: stopping", flush=True)
        _stop(process)


@contextmanager
def deepinfer_vllm(name: str, home: Path) -> Iterator[Side]:
    """`serve` with its etcd, a worker and one replica: `serve` and the shim count, the agent and EngineCore do not."""
    os.environ.setdefault("DEEPINFER_ENGINES_DIR", str(engines_dir()))  # the fleet's data folder is another one
    fleet = Fleet(home)
    try:
        fleet.start_serve()
        fleet.start_worker()
        fleet.deploy(
            model=MODEL,
            engine="vllm",
            backend="native",
            device="cpu",
            dtype="bfloat16",
            max_model_len=MAX_MODEL_LEN,
            engine_args=ENGINE_ARGS,
            env=ENV,
        )
        _wait_for_replica(name, fleet)
        assert fleet.serve is not None
        yield Side(name, fleet.port, (fleet.serve.pid, fleet.replicas(MODEL)[0]["pid"]))
    finally:
        print(f"{name}: stopping", flush=True)
        fleet.close()


def _wait_for_health(name: str, port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    for second in range(int(START_SECONDS)):
        if process.poll() is not None:
            raise SystemExit(f"{name} ended while it started:\n{log.read_text()[-3000:]}")
        try:
            if httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200:
                print(f"{name}: ready after {second} s", flush=True)
                return
        except httpx.TransportError:
            pass
        if second % 5 == 0:
            print(f"{name}: starting, {second} s", flush=True)
        time.sleep(1)
    raise SystemExit(f"{name} was not ready after {START_SECONDS:.0f} s:\n{log.read_text()[-3000:]}")


def _wait_for_replica(name: str, fleet: Fleet) -> None:
    told = ""
    for second in range(int(START_SECONDS)):
        status = fleet.get(f"/v1/deployments/{MODEL}")["status"]
        if status["phase"] == "ready":
            break
        if (line := json.dumps(status)) != told:
            print(f"{name}: {second} s: {line}", flush=True)
            told = line
        time.sleep(1)
    fleet.wait_ready(MODEL)
    print(f"{name}: ready", flush=True)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """With every process it started, whether or not it takes them along."""
    try:
        children = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        children = []
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for child in psutil.wait_procs(children, timeout=5)[1]:
        child.kill()
