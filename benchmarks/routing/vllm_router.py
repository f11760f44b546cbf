"""vllm-router over two bare vLLMs; each policy's run has a router of its own, which knows nothing yet."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from benchmarks.fleet.until import RunEnded
from benchmarks.gateway.environments import environment
from benchmarks.gateway.process_tree import started
from benchmarks.gateway.running import answers
from benchmarks.routing.engines import (
    BLOCK,
    DTYPE,
    ENVIRONMENT,
    FLAGS,
    FLUSH,
    MAX_MODEL_LEN,
    MODEL,
    REPLICAS,
    START_SECONDS,
    Gateway,
    model_folder,
    pin,
)
from benchmarks.vllm_servers import installed_vllm, shims_openmp
from tests.bare_vllm import BareVllm
from tests.fleet import eventually, free_port

POLICIES = ("round_robin", "cache_aware", "kv_aware", "sticky_least_loaded")
_END_PATH = "/finish_session"
"""Until it is told, sticky_least_loaded counts a session as load."""


@dataclass(frozen=True)
class BareReplica:
    """A vLLM that publishes its KV events, and where."""

    server: BareVllm
    events: str

    @property
    def url(self) -> str:
        return self.server.url


class VllmRouter:
    """`cache` is where it is installed, once; `home` where it logs."""

    def __init__(self, cache: Path, home: Path, replicas: list[BareReplica]) -> None:
        self._program = environment(cache / "vllm-router", ("vllm-router",)) / "vllm-router"
        self._home = home
        self._replicas = replicas

    @contextmanager
    def gateway(self, policy: str) -> Iterator[Gateway]:
        for replica in self._replicas:
            _empty(replica.url)
        port = free_port()
        command = [
            *(str(self._program), "--worker-urls", *(replica.url for replica in self._replicas), "--policy", policy),
            *("--host", "127.0.0.1", "--port", str(port), "--log-level", "warning"),
            *("--prometheus-host", "127.0.0.1", "--prometheus-port", str(free_port())),
            *(self._events() if policy == "kv_aware" else ()),
        ]
        log = self._home / f"{policy}.log"
        with started(command, log, frozenset(os.sched_getaffinity(0))) as tree:
            answers(tree, f"http://127.0.0.1:{port}/health")
            yield Gateway(f"http://127.0.0.1:{port}", _END_PATH)

    def _events(self) -> list[str]:
        sources = [
            part for replica in self._replicas for part in ("--kv-event-source", f"{replica.url}={replica.events}")
        ]
        return [*sources, "--kv-event-block-size", str(BLOCK), "--kv-event-model", MODEL]


@contextmanager
def vllm_router(cache: Path, home: Path) -> Iterator[VllmRouter]:
    if not model_folder().is_dir():
        raise RunEnded(f"There is no {model_folder()}; deepinfer makes it: run with one of its policies first.")
    with ExitStack() as stack:
        replicas = [_replica(home / f"vllm-{number}.log") for number in range(REPLICAS)]
        for replica in replicas:
            stack.callback(replica.server.stop)
        eventually(lambda: all(replica.server.is_ready() for replica in replicas), START_SECONDS)
        pin([replica.server.pid for replica in replicas])
        yield VllmRouter(cache, home, replicas)


def _replica(log: Path) -> BareReplica:
    """With the flags and the environment that deepinfer's are given, and with what its shim adds to them."""
    python, port = installed_vllm(), free_port()
    events = {"enable_kv_cache_events": True, "publisher": "zmq", "endpoint": f"tcp://*:{port}"}
    flags = {
        **FLAGS,
        "model": model_folder(),
        "served_model_name": MODEL,
        "dtype": DTYPE,
        "max_model_len": MAX_MODEL_LEN,
        "kv_events_config": json.dumps(events),
    }
    server = BareVllm(python, log, flags, {**ENVIRONMENT, **shims_openmp(python)})
    return BareReplica(server, f"tcp://127.0.0.1:{port}")


def _empty(url: str) -> None:
    with httpx.Client(base_url=url, trust_env=False, timeout=30) as http:
        eventually(lambda: http.post("/reset_prefix_cache").raise_for_status().json()["success"])
        http.post("/v1/completions", json=dict(FLUSH)).raise_for_status()
