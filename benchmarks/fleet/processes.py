"""The processes of the fleet: one etcd, one `serve`, a few that hold the simulated nodes. All die with this one."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.fleet.sightings import Sightings
from benchmarks.fleet.size import Size
from benchmarks.fleet.until import RunEnded
from deepinfer.fleet.die_with_parent import dying_with_me
from tests.etcd_process import EtcdProcess

_START_SECONDS = 30.0
_READY = b"deepinfer serve: ready at "
_LINE_BYTES = 1 << 20


@dataclass(frozen=True)
class Processes:
    """What is measured."""

    etcd: EtcdProcess
    serve: psutil.Process
    url: str
    nodes: tuple[psutil.Process, ...]

    def etcd_cpu(self) -> float:
        return cpu_seconds(psutil.Process(self.etcd.pid))

    def serve_cpu(self) -> float:
        return cpu_seconds(self.serve)

    def nodes_cpu(self) -> float:
        return sum(map(cpu_seconds, self.nodes))


def cpu_seconds(process: psutil.Process) -> float:
    """Spent so far by all its threads, in user and kernel mode."""
    spent = process.cpu_times()
    return spent.user + spent.system


@asynccontextmanager
async def running(size: Size, home: Path, etcd: EtcdProcess, sightings: Sightings) -> AsyncIterator[Processes]:
    """Nothing is left of them after the block. `etcd` runs already, and is the caller's."""
    started: list[asyncio.subprocess.Process] = []
    try:
        serve = await _started(home, "serve", "deepinfer.control_plane", "--port", "0", "--etcd", etcd.endpoint)
        started.append(serve)
        url = await _url(serve, home)
        holders = [await _nodes(size, home, etcd.endpoint, part) for part in range(size.processes)]
        started += holders
        async with asyncio.TaskGroup() as tasks:
            readers = [asyncio.create_task(_discard(serve))]
            readers += [tasks.create_task(sightings.follow(_stdout(holder))) for holder in holders]
            yield Processes(etcd, psutil.Process(serve.pid), url, tuple(psutil.Process(h.pid) for h in holders))
            for reader in readers:
                reader.cancel()
    finally:
        for process in started:
            if process.returncode is None:
                process.kill()
            await process.wait()


async def _nodes(size: Size, home: Path, etcd: str, part: int) -> asyncio.subprocess.Process:
    numbers = size.nodes_of(part)
    clients = max(1, size.clients // size.processes)
    return await _started(
        home,
        f"nodes-{part}",
        "benchmarks.fleet.nodes",
        *("--etcd", etcd, "--first", str(numbers.start), "--count", str(len(numbers)), "--clients", str(clients)),
        *("--lease-seconds", str(size.lease_seconds), "--folder", str(home / "engines")),
    )


async def _started(home: Path, name: str, module: str, *arguments: str) -> asyncio.subprocess.Process:
    """Its log goes to a file in `home`."""
    command = dying_with_me([sys.executable, "-m", module, *arguments], "SIGKILL")
    with (home / f"{name}.log").open("ab") as log:
        return await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
            limit=_LINE_BYTES,
            start_new_session=True,
        )


async def _url(serve: asyncio.subprocess.Process, home: Path) -> str:
    try:
        async with asyncio.timeout(_START_SECONDS):
            async for line in _stdout(serve):
                if line.startswith(_READY):
                    return line.removeprefix(_READY).decode().strip()
    except TimeoutError as error:
        raise RunEnded(f"serve was not ready after {_START_SECONDS:g} s.") from error
    raise RunEnded(f"serve did not start: {(home / 'serve.log').read_text()[-2000:]}")


async def _discard(process: asyncio.subprocess.Process) -> None:
    async for _ in _stdout(process):
        pass


def _stdout(process: asyncio.subprocess.Process) -> asyncio.StreamReader:
    assert process.stdout is not None
    return process.stdout
