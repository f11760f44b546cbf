"""The fleet that the fault rows break: on an etcd of its own, with as many gateways and nodes as a row needs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import httpx

from deepinfer.fleet import keys
from deepinfer.fleet.snapshot import Snapshot
from tests.etcd_process import EtcdProcess
from tests.faults import etcd_reading
from tests.fleet import Fleet, eventually, free_port, routed

LEASE_SECONDS = 2
"""Of nodes: five times shorter than by default, so that rows in which one runs out are five times as quick."""


class Gateway:
    """One `serve`: gateway, router, scheduler and management API are one process."""

    def __init__(self, number: int, port: int) -> None:
        self.log = f"serve-{number}.log"
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        none_idle = httpx.Limits(max_keepalive_connections=0)  # whose end would be one more change in the gateway
        self.http = httpx.Client(base_url=self.url, timeout=10, trust_env=False, limits=none_idle)
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def kill(self) -> None:
        """kill -9."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def is_ready(self) -> bool:
        try:
            return self.http.get("/ready", timeout=2).status_code == 200
        except httpx.TransportError:
            return False

    def routes_to(self, model: str) -> int:
        """How many of its replicas it would send a request to now."""
        try:
            return routed(self.http, model)
        except httpx.TransportError:
            return 0


class FaultFleet(Fleet):
    """`Fleet`'s own questions go to the first gateway."""

    def __init__(self, home: Path, *, gateways: int = 1, nodes: int = 1, worker: str = "", serve: str = "") -> None:
        (home / "etcd").mkdir()
        self.etcd = EtcdProcess(home / "etcd")
        worker = f"lease_seconds = {LEASE_SECONDS}\n{worker}"
        super().__init__(home, worker=worker, etcd=[self.etcd.endpoint], serve=serve)
        ports = [self.port, *(free_port() for _ in range(gateways - 1))]
        self.gateways = [Gateway(number, port) for number, port in enumerate(ports)]
        self.nodes = [f"node-{number + 1}" for number in range(nodes)]

    @contextmanager
    def running(self) -> Iterator[Self]:
        try:
            self.etcd.start()
            for gateway in self.gateways:
                self.start_gateway(gateway)
            for node in self.nodes:
                self.start_worker(node)
            yield self
        finally:
            try:
                self.close()
            finally:
                self.etcd.kill()

    def start_gateway(self, gateway: Gateway, **how: Any) -> None:
        port = str(gateway.port)
        gateway.process = self._start("deepinfer.control_plane", "--port", port, log=gateway.log, **how)
        eventually(gateway.is_ready, 30)

    def simulate(self, name: str = "chat", **spec: Any) -> None:
        """Deploy the simulated engine and wait until every gateway routes to all its replicas."""
        args = {"seconds_per_output_token": 0.005, **spec.pop("engine_args", {})}
        body = {"model": "anything", "engine": "sim", "device": "cpu", "engine_args": args, **spec}
        self.deploy(name=name, **body)
        self.routed_everywhere(name)

    def routed_everywhere(self, name: str = "chat") -> None:
        replicas = len(self.wait_ready(name))
        eventually(lambda: all(gateway.routes_to(name) >= replicas for gateway in self.gateways), 30)

    def now(self) -> Snapshot:
        """What etcd holds."""
        return etcd_reading.fleet_now(self.etcd.endpoint)

    def leader(self, other_than: Gateway | None = None) -> Gateway:
        """Who leads now; waits until somebody does, and another one."""
        (leader,) = eventually(lambda: [gateway for gateway in self._leader() if gateway is not other_than], 15)
        return leader

    def _leader(self) -> list[Gateway]:
        value = etcd_reading.values(self.etcd.endpoint, keys.LEADER).get(keys.LEADER)
        pid = int(json.loads(value)["name"].rpartition("-")[2]) if value else 0
        return [gateway for gateway in self.gateways if gateway.process and gateway.pid == pid]

    def kill_worker(self, node: str = "node-1") -> None:
        self.workers[node].kill()
        self.workers[node].wait()

    def connected(self, node: str = "node-1") -> bool:
        """Whether its lease lives, as etcd sees it."""
        return keys.node(node) in etcd_reading.values(self.etcd.endpoint, keys.NODES)

    def close(self) -> None:
        """Besides what `Fleet` checks: no lease, no watcher and no socket of an engine is left."""
        for gateway in self.gateways:
            if gateway.process is not None:
                gateway.process.terminate()
        for gateway in self.gateways:
            if gateway.process is not None:
                gateway.process.wait(30)
            gateway.http.close()
        super().close()
        eventually(lambda: etcd_reading.leases(self.etcd.endpoint) == 0, 15)
        eventually(lambda: self.etcd.metric("etcd_debugging_mvcc_watcher_total") == 0, 5)


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """SIGSTOP, and SIGCONT at the end of the block."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)
