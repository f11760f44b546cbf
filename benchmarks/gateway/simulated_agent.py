"""What an agent does for the two engines: a node and statuses in etcd, and a real sidecar shim beside each engine."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from contextlib import ExitStack, aclosing, contextmanager
from pathlib import Path

import httpx

from benchmarks.fleet.simulated_node import simulated_node
from benchmarks.gateway.engines import MODEL
from benchmarks.gateway.process_tree import started
from benchmarks.gateway.running import CannotRun, Site
from deepinfer.engine_shim.client import EngineClient
from deepinfer.fleet import keys
from deepinfer.fleet.launch import ContainerServer, EngineLaunch
from deepinfer.fleet.resources import Phase, Placement, ReplicaStatus
from deepinfer.fleet.spec import EngineKind
from deepinfer.fleet.store import EtcdStore

_PATIENCE_SECONDS = 30.0
_NODE = simulated_node(0)


@contextmanager
def engines_deployed(site: Site, etcd: str, api: httpx.Client) -> Iterator[None]:
    """The gateway may take a moment to see that they are ready."""
    asyncio.run(joined(etcd))
    body = {
        "name": MODEL,
        "model": MODEL,
        "engine": EngineKind.SIM,
        "device": "auto",
        "replicas": len(site.engines.ports),
    }
    if not (answer := api.post("/v1/deployments", json=body)).is_success:
        raise CannotRun(f"serve refused the deployment: {answer.text}")
    placements = asyncio.run(placements_of(etcd, len(site.engines.ports)))
    with ExitStack() as stack:
        sockets = [
            stack.enter_context(_shim(site, placement, port))
            for placement, port in zip(placements, site.engines.ports, strict=True)
        ]
        asyncio.run(told_ready(etcd, placements, sockets))
        yield


async def joined(etcd: str) -> None:
    """Under no lease: it is there until the etcd is thrown away."""
    async with EtcdStore.connect([etcd]) as store:
        await store.commit({keys.node(_NODE.name): _NODE.model_dump_json().encode()})


async def placements_of(etcd: str, count: int) -> list[Placement]:
    async with (
        asyncio.timeout(_PATIENCE_SECONDS),
        EtcdStore.connect([etcd]) as store,
        aclosing(store.changes(keys.PLACEMENTS)) as revisions,
    ):
        async for _ in revisions:
            found = (await store.read(keys.PLACEMENTS)).values
            if len(found) == count:
                break
    return [Placement.model_validate_json(value) for value in found.values()]


@contextmanager
def _shim(site: Site, placement: Placement, port: int) -> Iterator[Path]:
    """Where it can be asked."""
    launch = EngineLaunch(
        placement=placement.id,
        epoch=placement.epoch,
        engine=EngineKind.VLLM,
        served_names=(MODEL,),
        device="cpu",
        stall_seconds=0,
        socket=site.home / f"{placement.replica}.sock",
        container=ContainerServer(endpoint=f"127.0.0.1:{port}"),
    )
    file = site.home / f"{placement.replica}.json"
    file.write_bytes(launch.to_json())
    command = (sys.executable, "-m", "deepinfer.engine_shim", file)
    with started(command, site.home / f"shim-{placement.replica}.log", site.cores.others):
        yield launch.socket


async def told_ready(etcd: str, placements: list[Placement], sockets: list[Path]) -> None:
    statuses = {}
    for placement, socket in zip(placements, sockets, strict=True):
        client = EngineClient(f"unix:{socket}")
        info = await client.info(timeout_seconds=_PATIENCE_SECONDS, wait_for_ready=True)
        await client.close()
        status = ReplicaStatus(
            id=placement.id,
            epoch=placement.epoch,
            node=placement.node,
            phase=Phase.READY,
            endpoint=info.endpoint,
            pid=info.pid,
        )
        statuses[keys.status(placement.node, placement.id)] = status.model_dump_json().encode()
    async with EtcdStore.connect([etcd]) as store:
        await store.commit(statuses)
