"""One worker as a process, and what a test needs to know of its node from outside."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import psutil

from deepinfer.agent.native.engine_process import engine_processes
from deepinfer.fleet import keys
from deepinfer.fleet.cache import Cache
from deepinfer.fleet.errors import HistoryGone
from deepinfer.fleet.resources import Phase, Placement, ReplicaStatus
from deepinfer.fleet.snapshot import Snapshot
from deepinfer.fleet.store import EtcdStore
from tests.process_lines import ProcessLines

T = TypeVar("T")

CONFIG = "[worker]\nlease_seconds = 2\nstart_timeout_seconds = {start_timeout}\ndrain_seconds = 20\n"


@dataclass
class Worker:
    """Started, signalled and killed by the test; `clean_up` leaves no process behind."""

    home: Path
    etcd: str
    name: str = "node-1"
    state: str = "state"
    start_timeout: float = 20
    more_config: str = ""  # lines of its [worker] table
    more_arguments: tuple[str, ...] = ()
    docker: str = "unix:///nowhere"
    process: ProcessLines | None = None
    instances: set[str] = field(default_factory=set)

    async def start(self) -> None:
        """Returns when it said that it is ready."""
        await self.begin()
        assert self.process is not None
        await self.process.line_with(f"deepinfer worker {self.name}: ready")
        self.instances.add((self.home / self.state / self.name / "instance").read_text().strip())

    async def begin(self) -> None:
        config = self.home / "worker.toml"
        config.write_text(CONFIG.format(start_timeout=self.start_timeout) + self.more_config)
        arguments = [
            "-n",
            self.name,
            "-c",
            str(config),
            "--etcd",
            self.etcd,
            "--state-dir",
            str(self.home / self.state),
            *self.more_arguments,
        ]
        environment = {**os.environ, "XDG_CACHE_HOME": str(self.home / "cache"), "DOCKER_HOST": self.docker}
        self.process = await ProcessLines.start("deepinfer.agent", *arguments, environment=environment)

    async def end(self, number: signal.Signals) -> int:
        assert self.process is not None
        return await self.process.end(number)

    def engines(self) -> list[psutil.Process]:
        """Every living process of its engines."""
        return [p for i in self.instances for members in engine_processes(i).values() for p in members]

    async def clean_up(self) -> None:
        if self.process is not None:
            await self.process.end(signal.SIGKILL)
        for process in self.engines():
            process.kill()


async def until(store: EtcdStore, look: Callable[[Snapshot], T | None], seconds: float = 30.0) -> T:
    """The first true answer of `look`, asked about every state of the fleet from now on, however short it lasts."""
    async with asyncio.timeout(seconds):
        while True:
            reading = await store.read(keys.FLEET)
            cache = Cache(reading.entries, reading.revision)
            if found := look(cache.fleet):
                return found
            with suppress(HistoryGone):  # such as after a test compacted it
                async with aclosing(store.watch(keys.FLEET, reading.revision + 1, lambda _: None)) as changes:
                    async for each in changes:
                        cache.apply(each)
                        if found := look(cache.fleet):
                            return found


async def put(store: EtcdStore, *placements: Placement) -> None:
    await store.commit({keys.placement(p.node, p.id): p.to_json() for p in placements})


def in_phase(placement: Placement, phase: Phase) -> Callable[[Snapshot], ReplicaStatus | None]:
    def look(fleet: Snapshot) -> ReplicaStatus | None:
        status = fleet.status_of(placement)
        return status if status and status.phase is phase else None

    return look


def telling(placement: Placement, *words: str) -> Callable[[Snapshot], ReplicaStatus | None]:
    """What broke is told twice: at once, and when its end is verified, then with "trying again" and without a pid."""

    def look(fleet: Snapshot) -> ReplicaStatus | None:
        status = fleet.status_of(placement)
        return status if status and all(each in status.message for each in words) else None

    return look
