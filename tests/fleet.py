"""The product as processes: `serve` with its embedded etcd and agents, on free ports in a folder of their own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

import httpx
import psutil
from openai import OpenAI

from deepinfer.fleet import places

T = TypeVar("T")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def eventually(look: Callable[[], T], seconds: float = 20.0) -> T:
    """The first true answer of `look`; fails with the last one after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"not within {seconds} s; last seen: {found!r}"
        time.sleep(0.05)  # other processes are watched from outside: there is no event to wait for
    return found


class Fleet:
    """Started and killed by hand; `close` checks that nothing is left."""

    def __init__(self, home: Path, worker: str = "", engines: Path | None = None, docker: str | None = None) -> None:
        """`worker`: lines of the configuration's [worker] table. `engines`: where its workers look for installed
        engines; the user's own folder if it is not given. `docker`: where its workers look for Docker; nowhere if it is
        not given."""
        self.home = home
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.etcd_port = free_port()
        self.config = home / "deepinfer.toml"
        self.config.write_text(f"[etcd]\nport = {self.etcd_port}\n[serve]\nport = {self.port}\n[worker]\n{worker}")
        self.http = httpx.Client(base_url=self.url, timeout=60)
        self.openai = OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=120)
        engines = engines or places.engines_dir()
        self._environment = {**os.environ, "XDG_DATA_HOME": str(home), "DEEPINFER_ENGINES_DIR": str(engines)}
        self._environment["DOCKER_HOST"] = docker or f"unix://{home}/no-docker.sock"
        self.serve: subprocess.Popen[bytes] | None = None
        self.workers: dict[str, subprocess.Popen[bytes]] = {}

    @contextmanager
    def running(self) -> Iterator[Self]:
        """With `serve` and one worker; nothing of it is left after the block."""
        try:
            self.start_serve()
            self.start_worker()
            yield self
        finally:
            self.close()

    def _start(self, module: str, *args: str, log: str) -> subprocess.Popen[bytes]:
        with (self.home / log).open("ab") as out:
            return subprocess.Popen(
                [sys.executable, "-m", module, "-c", str(self.config), *args],
                env=self._environment,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    def start_serve(self) -> None:
        self.serve = self._start("deepinfer.control_plane", log="serve.log")
        eventually(lambda: self.is_up("/ready"), 30)

    def start_worker(self, name: str = "node-1") -> None:
        log = self.home / f"{name}.log"
        told = log.read_text().count(": ready") if log.exists() else 0
        self.workers[name] = self._start("deepinfer.agent", "-n", name, log=log.name)
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
        answer = self.http.post("/v1/deployments", json=body)
        assert answer.status_code == 201, answer.text
        return answer.json()

    def wait_ready(self, name: str, seconds: float = 60) -> list[dict[str, Any]]:
        """The replicas of a deployment, all of them ready and routed to."""

        def look() -> list[dict[str, Any]]:
            try:
                status = self.get(f"/v1/deployments/{name}")["status"]
                assert status["phase"] != "failed", status
                replicas = self.replicas(name)
            except httpx.TransportError:
                return []
            return replicas if status["phase"] == "ready" and self._routed(name) >= len(replicas) else []

        return eventually(look, seconds)

    def _routed(self, name: str) -> int:
        for line in self.http.get("/metrics").text.splitlines():
            if line.startswith("deepinfer_replicas{") and f'model="{name}"' in line and 'state="ready"' in line:
                return int(float(line.rpartition(" ")[2]))
        return 0

    def replicas(self, deployment: str) -> list[dict[str, Any]]:
        return [r for r in self.get("/v1/replicas") if r["deployment"] == deployment]

    def delete(self, name: str) -> None:
        assert self.http.delete(f"/v1/deployments/{name}").status_code == 202
        eventually(lambda: not self.replicas(name), 60)

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
