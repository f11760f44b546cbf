"""A node's launchers with programs where engines would be, each over the real thing: processes, and containers.

A program gets the arguments of its launch after its own name, and need not heed them.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import psutil

from deepinfer.agent.containers.container import ContainerEngine
from deepinfer.agent.containers.daemon import Daemon
from deepinfer.agent.containers.launcher import ContainerLauncher
from deepinfer.agent.containers.sidecar import Sidecars
from deepinfer.agent.engine_folders import engine_folder
from deepinfer.agent.engine_log import log_path
from deepinfer.agent.launching import Exit, LaunchedEngine, Launcher
from deepinfer.agent.native.engine_process import engine_processes
from deepinfer.agent.native.launcher import NativeLauncher
from deepinfer.fleet.resources import Placement
from deepinfer.fleet.spec import Backend, DeploymentSpec, DockerOptions
from tests.docker_engine import DockerEngine
from tests.docker_images import sim_image
from tests.fleet_values import placement
from tests.memory_limit import memory_limit
from tests.root_tar import PYTHON

STAYS = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
for away in (False, True):
    subprocess.Popen([sys.executable, "-c", code], start_new_session=away)
print("up", flush=True)
time.sleep(600)
"""
"""It and what it starts do all they can to stay; one of these leaves its session."""


class ProgramNode(Protocol):
    """One agent's launcher, which an agent that is started again would have too."""

    engines: Path

    @property
    def launcher(self) -> Launcher: ...

    async def start(self, program: str, *, epoch: int = 1, memory_bytes: int | None = None) -> LaunchedEngine:
        """Or the engine that runs already."""
        ...

    def left(self) -> Sequence[str]:
        """Whatever of its engines is on this machine, besides their logs."""
        ...


def printed(node: ProgramNode, engine: LaunchedEngine, *, previous: bool = False) -> str:
    log = log_path(engine_folder(node.engines, engine.mark.placement), previous=previous)
    return log.read_text() if log.exists() else ""


@asynccontextmanager
async def looked_after(engine: LaunchedEngine) -> AsyncIterator[asyncio.Task[Exit]]:
    """As an agent does as long as it lives; then it lets go of it, and the engine goes on."""
    async with asyncio.TaskGroup() as tasks:
        end = tasks.create_task(engine.ended())
        yield end
        end.cancel()


def tell(message: str, *, needs_help: bool = False) -> None:
    """To nobody."""


def secretive_environment() -> dict[str, str]:
    return {**os.environ, "HF_TOKEN": "hf_secret", "MY_API_KEY": "k", "TOKENIZERS_PARALLELISM": "false"}


def _new_folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


@dataclass
class NativeNode:
    """Its engines are this process's children."""

    home: Path
    limits: ExitStack
    instance: str = field(default_factory=lambda: os.urandom(8).hex())

    def __post_init__(self) -> None:
        self.engines, self.sockets = self.home / "engines", _new_folder(self.home / "sockets")
        self.launcher = NativeLauncher(self.instance, self.engines, self.sockets, secretive_environment())

    async def start(self, program: str, *, epoch: int = 1, memory_bytes: int | None = None) -> LaunchedEngine:
        launcher = replace(self.launcher, shim=(sys.executable, "-c", program))
        start = await launcher.prepared(placement(epoch=epoch), tell)
        engine = await start(self.home)
        if memory_bytes is not None:
            self.limits.enter_context(memory_limit(memory_bytes)).take(engine.pid)
            engine.note_members()
        return engine

    def left(self) -> Sequence[str]:
        return [*map(str, engine_processes(self.instance)), *map(str, self.sockets.iterdir())]


@dataclass
class ContainerNode:
    """Its Docker engine has containers of other agents too."""

    home: Path
    docker: DockerEngine
    daemon: Daemon
    instance: str

    def __post_init__(self) -> None:
        self.engines, self.sockets = self.home / "engines", _new_folder(self.home / "sockets")
        self.model, self.data = _new_folder(self.home / "model"), _new_folder(self.home / "data")
        environment = secretive_environment()
        self.sidecars = Sidecars(self.instance, self.sockets, environment)
        self.launcher = ContainerLauncher(self.daemon, self.sidecars, self.engines, environment, (self.data,))

    async def start(
        self, program: str, *, epoch: int = 1, memory_bytes: int | None = None, **docker: Any
    ) -> ContainerEngine:
        if memory_bytes is not None:
            docker["memory"] = str(memory_bytes)
        return await self.run(self.wanted(epoch=epoch, entrypoint=(str(PYTHON), "-c", program), **docker))

    def wanted(
        self, *, epoch: int = 1, image: str | None = None, spec: dict[str, Any] | None = None, **docker: Any
    ) -> Placement:
        """`docker`: the fields of that name; `spec`: the others."""
        given = {"model": "org/model", "docker_image": image or sim_image(self.docker), **(spec or {})}
        options = DockerOptions.model_validate({"kv_events": False, **docker})
        filled = DeploymentSpec.model_validate({"backend": Backend.DOCKER, "docker": options, **given})
        return placement(epoch=epoch).model_copy(update={"spec": filled})

    async def run(self, wanted: Placement) -> ContainerEngine:
        start = await self.launcher.prepared(wanted, tell)
        engine = await start(self.model)
        assert isinstance(engine, ContainerEngine)
        return engine

    def python(self, engine: ContainerEngine, code: str) -> str:
        """What it prints, run in the container."""
        done = self.docker.docker.containers.get(engine.seen.id).exec_run([str(PYTHON), "-c", code])
        assert isinstance(done.output, bytes)
        said = done.output.decode()
        assert done.exit_code == 0, said
        return said

    def left(self) -> Sequence[str]:
        mine = [str(each.name) for each in self.docker.ps() if each.labels.get("deepinfer.instance") == self.instance]
        return [*mine, *map(str, self.sidecar_processes()), *map(str, self.sockets.iterdir())]

    def sidecar_processes(self) -> list[psutil.Process]:
        return [process for group in engine_processes(f"{self.instance}-sidecar").values() for process in group]


@asynccontextmanager
async def native_node(home: Path) -> AsyncIterator[NativeNode]:
    """Its engines are gone afterwards."""
    with ExitStack() as limits:
        node = NativeNode(home, limits)
        yield node
        await _end_all(node)


@asynccontextmanager
async def container_node(home: Path, docker: DockerEngine) -> AsyncIterator[ContainerNode]:
    """Its engines are gone afterwards."""
    async with next_agent(home, docker, os.urandom(8).hex()) as node:
        yield node
        await _end_all(node)
        assert node.left() == []


@asynccontextmanager
async def next_agent(home: Path, docker: DockerEngine, instance: str) -> AsyncIterator[ContainerNode]:
    """Of a node that may have engines already. They stay."""
    daemon = Daemon({"DOCKER_HOST": docker.host}, instance)
    async with daemon.followed():
        await daemon.joined()
        yield ContainerNode(home, docker, daemon, instance)


async def _end_all(node: ProgramNode) -> None:
    for engine in await node.launcher.running():
        await engine.kill()
