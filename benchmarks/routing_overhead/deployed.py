"""Two deployments of real shims with simulated engines, which read their prompts by a model's tokenizer and template.

An agent starts simulated engines without a model, so these are started here, on a node that is only said to be there.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from benchmarks.fleet.until import RunEnded
from benchmarks.gateway.cores import divided
from benchmarks.gateway.process_tree import started
from benchmarks.gateway.simulated_agent import joined, placements_of, told_ready
from deepinfer.fleet.launch import EngineLaunch
from deepinfer.fleet.resources import Placement
from deepinfer.fleet.spec import EngineKind
from tests.fleet import Fleet, eventually, routed

REPLICAS: Final = 2
_ENGINE: Final = {
    "prefill_tokens_per_second": 1e9,
    "seconds_per_output_token": 0.0,
    "block_size": 16,
    "kv_blocks": 1 << 17,
}


@contextmanager
def deployed(fleet: Fleet, model: Path, policies: Sequence[str]) -> Iterator[None]:
    """One for each routing policy, named like it."""
    etcd = f"127.0.0.1:{fleet.etcd_port}"
    asyncio.run(joined(etcd))
    for policy in policies:
        body = {"name": policy, "model": policy, "engine": "sim", "replicas": REPLICAS, "routing": policy}
        if not (answer := fleet.http.post("/v1/deployments", json=body)).is_success:
            raise RunEnded(f"serve refused the deployment: {answer.text}")
    placements = asyncio.run(placements_of(etcd, REPLICAS * len(policies)))
    with ExitStack() as stack:
        sockets = [stack.enter_context(_shim(fleet.home, model, placement)) for placement in placements]
        asyncio.run(told_ready(etcd, placements, sockets))
        for policy in policies:
            eventually(lambda name=policy: routed(fleet.http, name) == REPLICAS, 60)  # type: ignore[misc]
        yield


@contextmanager
def _shim(home: Path, model: Path, placement: Placement) -> Iterator[Path]:
    """Where it can be asked."""
    launch = EngineLaunch(
        placement=placement.id,
        epoch=placement.epoch,
        engine=EngineKind.SIM,
        served_names=(placement.deployment,),
        model_path=model,
        device="cpu",
        engine_args=_ENGINE,
        stall_seconds=0,
        socket=home / f"{placement.id}.sock",
    )
    file = home / f"{placement.id}.json"
    file.write_bytes(launch.to_json())
    command = (sys.executable, "-m", "deepinfer.engine_shim", file)
    with started(command, home / f"shim-{placement.id}.log", divided().others):
        yield launch.socket
