"""Real etcd servers for tests, and a TCP proxy that can cut a client off from one."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import grpc

from deepinfer.fleet.die_with_parent import dying_with_me
from deepinfer.fleet.embedded_etcd import newest_etcd, server_command
from tests.fleet import free_port

PEER = "http://127.0.0.1:2380"  # as `server_command` names the lone member
_RECEIVED = re.compile(r'^grpc_server_msg_received_total\{grpc_method="(\w+)".*\} (\S+)$', re.MULTILINE)


class EtcdProcess:
    """One etcd with a port and data of its own. It dies with the test run, even if that is killed."""

    def __init__(self, folder: Path, *, fsync: bool = False) -> None:
        """Without fsync data survives a kill of the process all the same."""
        self.port = free_port()
        self.endpoint = f"127.0.0.1:{self.port}"
        self._folder = folder
        self._fsync = fsync
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when it is healthy."""
        command = server_command(newest_etcd(), self._folder / "data", self.port)
        if not self._fsync:
            command.append("--unsafe-no-fsync")
        with (self._folder / "etcd.log").open("ab") as log:
            self._process = subprocess.Popen(dying_with_me(command, "SIGKILL"), stdout=log, stderr=log)
        deadline = time.monotonic() + 30
        while not self._is_healthy():
            assert self._process.poll() is None and time.monotonic() < deadline, (self._folder / "etcd.log").read_text()
            time.sleep(0.02)  # another process: there is no event to wait for

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """kill -9."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def restart(self) -> None:
        self.kill()
        self.start()

    def wipe(self) -> None:
        """Its disk is lost; `start` makes it anew and empty."""
        self.kill()
        shutil.rmtree(self._folder / "data")

    def save(self, file: Path) -> None:
        """A backup, by etcd's own tool."""
        self._tool("etcdctl", f"--endpoints={self.endpoint}", "snapshot", "save", str(file))

    def restore(self, file: Path) -> None:
        """What is there is lost; `start` goes on from the backup, as the same cluster by its name."""
        self.wipe()
        same = [f"--initial-cluster=default={PEER}", f"--initial-advertise-peer-urls={PEER}"]
        self._tool("etcdutl", "snapshot", "restore", str(file), f"--data-dir={self._folder / 'data'}", *same)

    def pause(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)

    def alarm_corrupt(self, *, on: bool) -> None:
        """As etcd itself does it when members disagree. No tool of its own can."""
        request = bytes([0x08, 1 if on else 2, 0x18, 2])  # AlarmRequest: action (activate or not), alarm (corrupt)
        with grpc.insecure_channel(self.endpoint) as channel:
            channel.unary_unary("/etcdserverpb.Maintenance/Alarm", bytes, bytes)(request, timeout=5)

    def http_get(self, path: str) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
        try:
            connection.request("GET", path)
            return connection.getresponse().read().decode()
        finally:
            connection.close()

    def metric(self, name: str) -> float:
        return next(float(line.split()[1]) for line in self.http_get("/metrics").splitlines() if line.startswith(name))

    def received(self) -> Counter[str]:
        """How many messages came to it so far, by method: calls, and what was sent over open streams."""
        found: Counter[str] = Counter()
        for method, count in _RECEIVED.findall(self.http_get("/metrics")):
            found[method] += int(float(count))
        return found

    def _tool(self, name: str, *arguments: str) -> None:
        command = [str(newest_etcd().with_name(name)), *arguments]
        subprocess.run(command, check=True, capture_output=True, timeout=60)

    def _is_healthy(self) -> bool:
        try:
            return '"true"' in self.http_get("/health")
        except (OSError, http.client.HTTPException):
            return False


class FaultProxy:
    """Loopback TCP to `target`. `block` is a network that swallows everything; `cut` resets what is open."""

    def __init__(self, target: str) -> None:
        self.endpoint = ""
        self._host, _, port = target.partition(":")
        self._port = int(port)
        self._to_server = asyncio.Event()
        self._to_client = asyncio.Event()
        self._writers: set[asyncio.StreamWriter] = set()
        self.heal()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[FaultProxy]:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.endpoint = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()
            self.heal()
            self.cut()
            await server.wait_closed()

    @property
    def connections(self) -> int:
        return len(self._writers)

    def block(self) -> None:
        self._to_server.clear()
        self._to_client.clear()

    def swallow_answers(self) -> None:
        """Requests arrive; what comes back does not."""
        self._to_client.clear()

    def heal(self) -> None:
        self._to_server.set()
        self._to_client.set()

    def cut(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = {writer}
        self._writers |= writers
        try:
            await self._to_server.wait()
            server_reader, server_writer = await asyncio.open_connection(self._host, self._port)
            writers.add(server_writer)
            self._writers |= writers
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._pump(reader, server_writer, self._to_server))
                tasks.create_task(self._pump(server_reader, writer, self._to_client))
        except* OSError:
            pass  # one side is gone; so is the other, below
        finally:
            self._writers -= writers
            for each in writers:
                each.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, is_open: asyncio.Event) -> None:
        while data := await reader.read(65536):
            await is_open.wait()
            writer.write(data)
            await writer.drain()
        writer.close()
