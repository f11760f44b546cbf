"""A real Docker engine of the tests' own: its data, its socket and its bridge are nobody else's. It needs root.

It can be killed, stopped, paused and started again, with or without live restore. `close` leaves nothing behind.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from functools import cached_property
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import docker
import psutil
import requests
from docker.models.containers import Container

from deepinfer.fleet.die_with_parent import dying_with_me

_SECONDS: Final = 60
_BRIDGES: Final = 250


class DockerEngine:
    """`docker` is a client of it, `host` what goes into DOCKER_HOST."""

    def __init__(self, *, live_restore: bool = False) -> None:
        assert shutil.which("dockerd"), "These tests run containers, and there is no dockerd here; install docker.io."
        assert os.geteuid() == 0, "These tests start a Docker engine of their own, which only root may."
        self._folder = Path(tempfile.mkdtemp(prefix="docker-", dir="/tmp"))  # a socket's path is short
        self.socket = self._folder / "docker.sock"
        self.host = f"unix://{self.socket}"
        self.log = self._folder / "dockerd.log"
        self._bridge, self.gateway = _new_bridge()  # `gateway` is this machine's address on it
        self.configure(live_restore=live_restore)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @cached_property
    def docker(self) -> docker.DockerClient:
        return docker.DockerClient(self.host, timeout=_SECONDS)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def configure(self, *, live_restore: bool) -> None:
        """From the next start on."""
        (self._folder / "daemon.json").write_text(json.dumps(self._settings(live_restore)))

    def start(self) -> None:
        """Returns when it answers. It ends with the thread that calls this."""
        command = ["dockerd", "--config-file", str(self._folder / "daemon.json")]
        with self.log.open("ab") as log:
            # A session of its own: Ctrl-C is for the tests, whose end stops it in order.
            self._process = subprocess.Popen(dying_with_me(command), stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + _SECONDS
        while not self._answers():
            assert self._process.poll() is None and time.monotonic() < deadline, self.log.read_text()[-3000:]
            time.sleep(0.02)  # another process: there is no event to wait for

    def kill(self) -> None:
        """kill -9. The containers run on, and their shims."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """In order; without live restore the containers are stopped."""
        self._end(signal.SIGTERM)

    def restart(self) -> None:
        self.stop()
        self.start()

    def pause(self) -> None:
        """It answers nobody, until `resume`."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def ps(self) -> list[Container]:
        """All containers, also those that do not run."""
        return self.docker.containers.list(all=True, ignore_removed=True)

    def close(self) -> None:
        """Also after a test that left it killed or paused."""
        if self.is_running:
            self.resume()
        else:
            self.start()  # it knows its containers
        for container in self.ps():
            container.remove(force=True, v=True)
        self.stop()
        self.docker.close()
        subprocess.run(["ip", "link", "delete", self._bridge], check=True)
        left = [process.cmdline() for process in self._processes()]
        for mount in self._mounts():
            subprocess.run(["umount", "--lazy", mount], check=True)
        shutil.rmtree(self._folder)
        assert not left, f"the Docker engine left processes behind: {left}"

    def _settings(self, live_restore: bool) -> dict[str, Any]:
        return {
            "data-root": str(self._folder / "data"),
            "exec-root": str(self._folder / "exec"),
            "pidfile": str(self._folder / "pid"),
            "hosts": [self.host],
            "bridge": self._bridge,
            "iptables": False,  # the machine's rules are not ours to change; published ports go through docker-proxy
            "ip6tables": False,
            "ip-forward": False,
            "live-restore": live_restore,
        }

    def _answers(self) -> bool:
        try:
            return bool(self.docker.ping())
        except (requests.RequestException, docker.errors.DockerException):
            return False

    def _end(self, number: signal.Signals) -> None:
        """With its containerd, which the kernel kills after it."""
        assert self._process is not None
        children = psutil.Process(self.pid).children()
        self._process.send_signal(number)
        self._process.wait(_SECONDS)
        _, left = psutil.wait_procs(children, timeout=_SECONDS)
        assert not left, f"these outlived dockerd: {left}"

    def _processes(self) -> list[psutil.Process]:
        return [p for p in psutil.process_iter(["cmdline"]) if str(self._folder) in " ".join(p.info["cmdline"] or ())]

    def _mounts(self) -> list[str]:
        """The inner ones first."""
        mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
        return sorted((mount for mount in mounts if mount.startswith(f"{self._folder}/")), reverse=True)


def _new_bridge() -> tuple[str, str]:
    """A bridge with a network of its own, and this machine's address in it."""
    for number in count(1):
        name, address = f"deepinfer{number}", f"172.29.{number}.1"
        added = subprocess.run(["ip", "link", "add", "name", name, "type", "bridge"], capture_output=True, text=True)
        if added.returncode == 0:
            break
        assert number < _BRIDGES and "exists" in added.stderr, f"no bridge can be made: {added.stderr}"
    subprocess.run(["ip", "address", "add", f"{address}/24", "dev", name], check=True)
    subprocess.run(["ip", "link", "set", name, "up"], check=True)
    return name, address
