"""A fleet on an etcd of its own, for tests that take the store away, bring it back, or bring another one."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil

from deepinfer.agent.native.engine_process import mark_of
from deepinfer.etcd.client import Client
from deepinfer.fleet.snapshot import View
from deepinfer.fleet.store import EtcdStore
from tests.etcd_process import EtcdProcess
from tests.fleet import Fleet, eventually

STALE = "x-deepinfer-stale-since"
SPEED = {"seconds_per_output_token": 0.005}


class StoreFleet(Fleet):
    """`serve` and one worker, on an etcd of the test's."""

    def __init__(self, home: Path, endpoints: Sequence[str], worker: str = "") -> None:
        super().__init__(home, worker=worker, etcd=endpoints)
        self._endpoints = endpoints

    def deploy_sim(self, name: str, **more: Any) -> psutil.Process:
        """A deployment that is ready; its one engine."""
        self.deploy(**{"name": name, "model": name, "engine": "sim", "device": "cpu", "engine_args": SPEED, **more})
        return psutil.Process(self.wait_ready(name)[0]["pid"])

    def engines_of(self, deployment: str) -> list[psutil.Process]:
        """The processes, whatever is told of them."""
        marked = [(process, mark_of(process)) for process in self.processes()]
        return [process for process, mark in marked if mark and mark.placement.startswith(f"{deployment}-")]

    def view(self) -> View:
        """What the store holds now."""

        async def read() -> View:
            async with EtcdStore.connect(self._endpoints) as store:
                return await store.view()

        return asyncio.run(read())

    def write_and_compact(self, puts: Mapping[str, bytes | None]) -> None:
        """Behind everybody's back; nothing of how it came about is left."""

        async def write() -> None:
            async with EtcdStore.connect(self._endpoints) as store, Client(self._endpoints) as client:
                await client.compact(await store.commit(puts))

        asyncio.run(write())

    def is_stale(self) -> bool:
        return STALE in self.http.get("/v1/nodes").headers

    def names(self) -> list[str]:
        return [deployment["name"] for deployment in self.get("/v1/deployments")]

    def told(self) -> Any:
        """What `serve` says of its fleet."""
        return self.get("/v1/fleet")

    def try_to_write(self) -> httpx.Response:
        return self.http.post("/v1/deployments", json={"name": "new", "model": "new", "engine": "sim"})

    def kill_worker(self, name: str = "node-1") -> None:
        self.workers[name].kill()
        self.workers[name].wait()


class LoneEtcdFleet(StoreFleet):
    """Its etcd is one process that the test may kill, wipe and restore."""

    def __init__(self, home: Path, etcd: EtcdProcess, worker: str = "") -> None:
        super().__init__(home, [etcd.endpoint], worker)
        self.etcd = etcd


@contextmanager
def store_fleet(home: Path, worker: str = "") -> Iterator[LoneEtcdFleet]:
    """Nothing is left after the block. `worker`: lines of the configuration's [worker] table."""
    (home / "etcd").mkdir()
    etcd = EtcdProcess(home / "etcd")
    etcd.start()
    try:
        with LoneEtcdFleet(home, etcd, worker).running() as fleet:
            yield fleet
    finally:
        etcd.kill()


@contextmanager
def stopped(*processes: subprocess.Popen[bytes] | None) -> Iterator[None]:
    """SIGSTOP for the block."""
    pids = [process.pid for process in processes if process is not None]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def joined(fleet: StoreFleet) -> str:
    """The id of the fleet that node-1 has joined."""
    return eventually(lambda: next((node.fleet for node in fleet.view().fleet.nodes), ""))
