"""Starts engines as containers, and finds those an earlier agent started, by their labels.

Containers are named for their placement and epoch, so Docker itself refuses a second one.
"""

from __future__ import annotations

import asyncio
import grp
import logging
import os
import re
import secrets
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from docker.errors import APIError

from deepinfer.agent.containers.container import ContainerEngine
from deepinfer.agent.containers.container_log import POSITION
from deepinfer.agent.containers.creation import BRIDGE_PORT, INSTANCE, Making, creation
from deepinfer.agent.containers.daemon import Daemon
from deepinfer.agent.containers.device_access import DeviceAccess, access_to, known_access
from deepinfer.agent.containers.failures import ContainerRefused
from deepinfer.agent.containers.image import Image, image_of
from deepinfer.agent.containers.mounts import check_mounts, model_mounts, refuse_dockers_socket
from deepinfer.agent.containers.seen import SeenContainer, seen_container
from deepinfer.agent.containers.server_command import Listening, listening, server_command
from deepinfer.agent.containers.sidecar import Sidecars
from deepinfer.agent.containers.start_failure import start_failure
from deepinfer.agent.engine_folders import engine_folder, launch_file
from deepinfer.agent.engine_launch import launch_of
from deepinfer.agent.engine_log import start_new_log
from deepinfer.agent.hub_model import hub_cache
from deepinfer.agent.launching import Mark, Start, Tell
from deepinfer.fleet.engine_arguments import by_name
from deepinfer.fleet.launch import EngineLaunch
from deepinfer.fleet.resources import Placement
from deepinfer.fleet.spec import DockerOptions

_CONTAINER = re.compile(r"[0-9a-f]{64}")
_BETWEEN_STARTS_SECONDS = 1.0  # engines that load at the same moment hinder each other

log = logging.getLogger(__name__)


@dataclass
class ContainerLauncher:
    """One per agent."""

    daemon: Daemon
    sidecars: Sidecars
    engines: Path  # a folder for each placement
    environment: Mapping[str, str]  # the agent's own
    mountable: tuple[Path, ...] = ()  # folders that deployments may mount from
    stall_seconds: float = 10.0
    _starting: asyncio.Lock = field(default_factory=asyncio.Lock)
    _next_start: float = 0.0  # not before, by the monotonic clock
    _marks: dict[str, Mark] = field(default_factory=dict)  # by the container's id

    async def prepared(self, placement: Placement, tell: Tell) -> Start:
        options = placement.spec.docker_options
        check_mounts(options.mounts, self.mountable, self.daemon.address)
        access = access_to(placement.devices, known_access())
        if self.daemon.trouble:
            tell(f"RuntimeUnreachable: {self.daemon.trouble}")  # what it may still run is as unknown as it was
            await self.daemon.reachable()
        image = await image_of(self.daemon, placement.spec.docker_image or "", options.pull, tell)

        async def start(model: Path | None) -> ContainerEngine:
            async with self._starting:
                await asyncio.sleep(self._next_start - time.monotonic())
                engine = await self._there(placement) or await self._made(placement, model, image, access)
                # No pause from here on: who is cancelled in it would not know of the container that it made.
                self._next_start = time.monotonic() + _BETWEEN_STARTS_SECONDS
            return engine

        return start

    async def running(self) -> list[ContainerEngine]:
        """Also those that have ended or never began. A sidecar whose container is gone is ended."""
        with_sidecar = await asyncio.to_thread(self.sidecars.marks)  # before the containers: those come first
        mine = {"label": f"{INSTANCE}={self.sidecars.instance}"}
        listed = await self.daemon.ask(lambda client: client.api.containers(all=True, filters=mine))
        seen = [await self._seen(entry["Id"]) for entry in listed]
        self._marks = {each.id: each.mark for each in seen if each}
        engines = [ContainerEngine(self.daemon, self.sidecars, each, self._folder(each.mark)) for each in seen if each]
        for mark in set(with_sidecar) - {engine.mark for engine in engines}:
            await self.sidecars.end(mark, self._folder(mark))
        return engines

    def owner(self, process: psutil.Process) -> Mark | None:
        """By its cgroup, which names its container."""
        with suppress(OSError):
            found = _CONTAINER.search(Path(f"/proc/{process.pid}/cgroup").read_text())
            return self._marks.get(found[0]) if found else None
        return None

    def _mark(self, placement: Placement) -> Mark:
        return Mark(placement.id, placement.epoch, self.sidecars.instance)

    def _folder(self, mark: Mark) -> Path:
        return engine_folder(self.engines, mark.placement)

    async def _seen(self, container: str) -> SeenContainer | None:
        attributes = await self.daemon.inspected(container)
        seen = None if attributes is None else seen_container(attributes)
        if seen is not None:
            self._marks[seen.id] = seen.mark
        return seen

    async def _there(self, placement: Placement) -> ContainerEngine | None:
        """The one that runs already; what is left of others of this placement is removed."""
        found = None
        for engine in await self.running():
            if engine.mark.placement != placement.id:
                continue
            if engine.is_whole and engine.mark.epoch == placement.epoch:
                found = engine
            else:
                await engine.kill()
        return found

    async def _made(
        self, placement: Placement, model: Path | None, image: Image, access: DeviceAccess
    ) -> ContainerEngine:
        mark = self._mark(placement)
        folder = self._folder(mark)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(start_new_log(folder))
        for of_the_last_one in (folder / POSITION, launch_file(folder)):  # a new container has another port and key
            of_the_last_one.unlink(missing_ok=True)
        socket = self.sidecars.socket(mark)
        launch = launch_of(placement, model, socket=socket, folder=folder, stall_seconds=self.stall_seconds)
        making = self._making(placement, launch, image, access)
        starting = asyncio.create_task(self._started(making, placement.spec.docker_options))
        try:
            seen = await asyncio.shield(starting)
        except asyncio.CancelledError:
            with suppress(Exception):
                await ContainerEngine(self.daemon, self.sidecars, await starting, folder).kill()
            raise
        return ContainerEngine(self.daemon, self.sidecars, seen, folder, launch)

    async def _started(self, making: Making, options: DockerOptions) -> SeenContainer:
        try:
            container = await self.daemon.ask(lambda client: client.containers.create(**creation(making, options)))
        except (APIError, ValueError) as error:
            raise start_failure(error) from error
        try:
            await self.daemon.ask(lambda _: container.start())
        except APIError as error:
            with suppress(APIError):
                await self.daemon.ask(lambda _: container.remove(force=True))
            raise start_failure(error) from error
        seen = await self._seen(str(container.id))
        if seen is None:
            raise ContainerRefused("somebody removed the container as it was started.")
        return seen

    def _making(self, placement: Placement, launch: EngineLaunch, image: Image, access: DeviceAccess) -> Making:
        options, mark = placement.spec.docker_options, self._mark(placement)
        on_host = options.network == "host"
        place = Listening("127.0.0.1", _free_port()) if on_host else Listening("0.0.0.0", BRIDGE_PORT)  # noqa: S104
        sockets = self.sidecars.kv_events(mark) if self._may_share_sockets(options, placement) else None
        return Making(
            image=image.id,
            mark=mark,
            command=server_command(
                image.entrypoint, options.entrypoint, launch, listening(place, _kv_flags(sockets, launch))
            ),
            port=place.port if on_host else None,
            read_only=self._model_mounts(launch.model_path),
            sockets=sockets,
            hub_cache=hub_cache(self.environment),
            api_key=secrets.token_urlsafe(24),
            groups=_numbers(access.groups),
            env=placement.spec.env,
            access=access.model_copy(update={"mounts": tuple(p for p in access.mounts if Path(p).exists())}),
        )

    def _model_mounts(self, model: Path | None) -> tuple[Path, ...]:
        folders = () if model is None else model_mounts(model)
        for folder in folders:
            refuse_dockers_socket(folder, self.daemon.address)
        return folders

    def _may_share_sockets(self, options: DockerOptions, placement: Placement) -> bool:
        """Sockets that another user makes cannot be connected to."""
        if not options.kv_events or by_name(placement.spec.engine_args).get("enable_prefix_caching") is False:
            return False
        own = (options.user or "").partition(":")[0] == str(os.geteuid())
        if os.geteuid() == 0 or self.daemon.facts.rootless or own:
            return True
        log.warning("%s tells no KV events: its container runs as another user; set docker.user", placement.id)
        return False


def _kv_flags(sockets: Path | None, launch: EngineLaunch) -> dict[str, object] | None:
    if sockets is None:
        return None
    from deepinfer.engine_shim.engines.vllm.kv_subscription import kv_events_flags  # brings ZeroMQ

    return kv_events_flags(sockets, data_parallel_ranks=by_name(launch.engine_args).get("data_parallel_size", 1))


def _free_port() -> int:
    """Of the kernel's choice. Somebody may take it before the container does: then that fails, and gets another one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _numbers(groups: tuple[str, ...]) -> tuple[int, ...]:
    """Those that the node has: in the container their names may mean nothing."""
    numbers = []
    for name in groups:
        with suppress(KeyError):
            numbers.append(grp.getgrnam(name).gr_gid)
    return tuple(numbers)
