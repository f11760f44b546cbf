"""The shim beside a container: a native process of its own, so that it outlives the agent as the container does."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from deepinfer.agent.engine_folders import launch_file
from deepinfer.agent.engine_log import appended_log
from deepinfer.agent.launching import Mark, socket_path
from deepinfer.agent.native.engine_process import MARK, EngineProcess, engine_processes, spawned
from deepinfer.agent.native.launcher import SHIM
from deepinfer.fleet.durable_file import write_durably
from deepinfer.fleet.launch import EngineLaunch
from deepinfer.fleet.spec import without_secrets

_SUFFIX = "-sidecar"
"""After the instance in its mark: native engines are found by the instance alone."""


@dataclass(frozen=True)
class Sidecars:
    """One per agent."""

    instance: str
    sockets: Path
    environment: Mapping[str, str]  # the agent's own

    def socket(self, mark: Mark) -> Path:
        return socket_path(self.sockets, mark)

    def kv_events(self, mark: Mark) -> Path:
        """The folder of its engine's sockets."""
        return self.socket(mark).with_suffix(".kv")

    def marks(self) -> list[Mark]:
        """The engines that have one. Blocks for a moment: it looks at every process."""
        return [replace(theirs, instance=self.instance) for theirs in engine_processes(self.instance + _SUFFIX)]

    def running(self, mark: Mark, folder: Path) -> EngineProcess | None:
        """Blocks for a moment: it looks at every process."""
        theirs = _theirs(mark)
        members = engine_processes(theirs.instance).get(theirs)
        if not members:
            return None
        return EngineProcess(theirs, members[0].pid, members[0].create_time(), self.socket(mark), folder)

    async def end(self, mark: Mark, folder: Path) -> None:
        """If it runs; with all that it left."""
        process = await asyncio.to_thread(self.running, mark, folder)
        if process is not None:
            await process.kill()
        await asyncio.to_thread(shutil.rmtree, self.kv_events(mark), ignore_errors=True)
        self.socket(mark).unlink(missing_ok=True)

    def start(self, mark: Mark, launch: EngineLaunch, folder: Path) -> EngineProcess:
        file = launch_file(folder)
        write_durably(file, launch.to_json())
        theirs = _theirs(mark)
        variables = {**without_secrets(self.environment), MARK: str(theirs), "PYTHONUNBUFFERED": "1"}
        with appended_log(folder) as out:
            child = spawned([*SHIM, str(file)], folder, variables, out)
        created = psutil.Process(child.pid).create_time()
        return EngineProcess(theirs, child.pid, created, launch.socket, folder, child)


def _theirs(mark: Mark) -> Mark:
    return replace(mark, instance=mark.instance + _SUFFIX)
