"""The product as processes: `serve` with its embedded etcd and agents, on free ports in a folder of their own."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self, TypeVar

import httpx
import psutil
from openai import OpenAI

from deepinfer.fleet import places

T = TypeVar("T")

DEEPINFER = Path(sys.executable).with_name("deepinfer")
NOTHING: Mapping[str, str] = {}
_PORTS = iter(random.sample(range(20_000, 32_000), 12_000))  # each once, and others in each run


def free_port() -> int:
    """One that nobody has, below those that the kernel gives to whoever connects: nobody gets it by chance."""
    for port in _PORTS:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


def eventually(look: Callable[[], T], seconds: float = 20.0) -> T:
    """The first true answer of `look`; fails with the last one after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"not within {seconds} s; last seen: {found!r}"
        time.sleep(0.05)  # other processes are watched from outside: there is no event to wait for
    return found


def routed(http: httpx.Client, model: str) -> int:
    """How many replicas of it one gateway would send a request to now."""
    return metric(http, "deepinfer_replicas", f'model_name="{model}"', 'state="ready"')


def metric(http: httpx.Client, name: str, *labels: str) -> int:
    """Of a gateway, all together that have these labels."""
    lines = (line for line in http.get("/metrics").text.splitlines() if line.startswith(f"{name}{{"))
    return sum(int(float(line.rpartition(" ")[2])) for line in lines if all(label in line for label in labels))


def foreseen_places(told: Any) -> list[tuple[str, list[str]]]:
    """Where a dry run says that a new deployment ends; its explanation of the first step must not say otherwise."""
    started = [replica for replica in told["foreseen"]["started"] if replica["deployment"] == told["name"]]
    explanation = told["explanation"]
    if not explanation["missing"]:
        assert where(r for r in explanation["replicas"] if r["why"].startswith("starts")) == where(started)
    return where(started)


def where(replicas: Iterable[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """Node and devices of each."""
    return sorted((replica["node"], replica["devices"]) for replica in replicas)


class Fleet:
    """Started and killed by hand; `close` checks that nothing is left."""

    def __init__(
        self,
        home: Path,
        worker: str = "",
        engines: Path | None = None,
        docker: str | None = None,
        etcd: Sequence[str] = (),
        *,
        serve: str = "",
    ) -> None:
        """`worker`, `serve`: lines of these tables of the configuration. `engines`: where workers look for installed
        engines; the user's own folder if it is not given. `docker`: where its workers look for Docker; nowhere if it is
        not given. `etcd`: the endpoints of one that runs; `serve` brings its own if there are none."""
        self.home = home
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.etcd_port = free_port()
        self.config = home / "deepinfer.toml"
        store = f"endpoints = {json.dumps(list(etcd))}" if etcd else f"port = {self.etcd_port}"
        self.config.write_text(f"[etcd]\n{store}\n[serve]\nport = {self.port}\n{serve}[worker]\n{worker}")
        idle = httpx.Limits(keepalive_expiry=2)  # the server's 5 s are httpx's too, and then both act at once
        self.http = httpx.Client(base_url=self.url, timeout=60, limits=idle)
        self.openai = OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=120)
        engines = engines or places.engines_dir()
        self._environment = {**os.environ, "XDG_DATA_HOME": str(home), "DEEPINFER_ENGINES_DIR": str(engines)}
        self._environment["DOCKER_HOST"] = docker or f"unix://{home}/no-docker.sock"
        self.serve: subprocess.Popen[bytes] | None = None
        self.workers: dict[str, subprocess.Popen[bytes]] = {}
        self._foreseen: dict[str, list[tuple[str, list[str]]]] = {}

    @contextmanager
    def running(self) -> Iterator[Self]:
        """With `serve` and one worker; nothing of it is left after the block."""
        try:
            self.start_serve()
            self.start_worker()
            yield self
        finally:
            self.close()

    def _start(
        self, module: str, *args: str, log: str, more: Mapping[str, str] = NOTHING, **how: Any
    ) -> subprocess.Popen[bytes]:
        """`more`: of its environment. `how`: what else Popen takes."""
        with (self.home / log).open("ab") as out:
            return subprocess.Popen(
                [sys.executable, "-m", module, "-c", str(self.config), *args],
                env={**self._environment, **more},
                stdout=out,
                stderr=out,
                start_new_session=True,
                **how,
            )

    def start_serve(self) -> None:
        self.serve = self._start("deepinfer.control_plane", log="serve.log")
        eventually(lambda: self.is_up("/ready"), 30)

    def start_worker(self, name: str = "node-1", **how: Any) -> None:
        log = self.home / f"{name}.log"
        told = log.read_text().count(": ready") if log.exists() else 0
        self.workers[name] = self._start("deepinfer.agent", "-n", name, log=log.name, **how)
        eventually(lambda: log.read_text().count(": ready") > told, 30)

    def is_up(self, path: str) -> bool:
        try:
            return self.http.get(path).status_code == 200
        except httpx.TransportError:
            return False

    def get(self, path: str) -> Any:
        answer = self.http.get(path).raise_for_status().json()
        return answer["data"] if answer.get("object") == "list" else answer

    def deploy(self, **body: Any) -> Any:
        """After a dry run, by a server that knows every worker: `wait_ready` compares what it told with what came."""
        running = {name for name, worker in self.workers.items() if worker.poll() is None}
        eventually(lambda: running <= {node["name"] for node in self.get("/v1/nodes") if node["alive"]})
        told = self.http.post("/v1/deployments", json=body, params={"dry_run": "true"})
        answer = self.http.post("/v1/deployments", json=body)
        assert answer.status_code == 201, answer.text
        assert told.status_code == 200, told.text
        self._foreseen[told.json()["name"]] = foreseen_places(told.json())
        return answer.json()

    def wait_ready(self, name: str, seconds: float = 60, *, as_foreseen: bool = True) -> list[dict[str, Any]]:
        """The replicas of a deployment, all of them ready and routed to; the first time, where the dry run said.

        `as_foreseen` is False where the test itself changed the fleet between the two.
        """

        def look() -> list[dict[str, Any]]:
            try:
                status = self.get(f"/v1/deployments/{name}")["status"]
                assert status["phase"] != "failed", status
                replicas = [replica for replica in self.replicas(name) if replica["intent"] == "serve"]
            except httpx.TransportError:
                return []
            return replicas if status["phase"] == "ready" and routed(self.http, name) >= len(replicas) else []

        found = eventually(look, seconds)
        foreseen = self._foreseen.pop(name, None)
        if foreseen is not None and as_foreseen:
            assert where(found) == foreseen
        return found

    def replicas(self, deployment: str) -> list[dict[str, Any]]:
        return [r for r in self.get("/v1/replicas") if r["deployment"] == deployment]

    def delete(self, name: str) -> None:
        assert self.http.delete(f"/v1/deployments/{name}").status_code == 202
        eventually(lambda: not self.replicas(name), 60)

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """What `deepinfer` says."""
        command = [str(DEEPINFER), *arguments, "--server", self.url]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)

    def processes(self) -> list[psutil.Process]:
        """Every process that runs in this fleet's name, engines and etcd included."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("XDG_DATA_HOME") == str(self.home) and process.status() != "zombie":
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                continue
        return found

    def log(self, name: str) -> str:
        return (self.home / name).read_text()[-3000:]

    def close(self) -> None:
        """Stop as Ctrl-C would: workers take their engines with them. Whatever is left after that is a failure."""
        for worker in self.workers.values():
            worker.send_signal(signal.SIGINT)
        for worker in self.workers.values():
            worker.wait(60)
        if self.serve is not None:
            self.serve.terminate()
            self.serve.wait(30)
        left = [f"{p.pid} {' '.join(p.cmdline())}" for p in self.processes()]
        for process in self.processes():
            process.kill()
        assert not left, left
