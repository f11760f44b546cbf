"""One engine in a container, with its sidecar and its log: who it is, when and why it ends, and that nothing is left.

Docker's word decides. While it gives none, nothing is concluded: the container runs on, its server is used on, and no
second one is made. A sidecar that dies is started again; the container is not touched for that.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from pathlib import Path

from docker.errors import APIError, NotFound

from deepinfer.agent.containers.container_log import ContainerLog
from deepinfer.agent.containers.daemon import Daemon
from deepinfer.agent.containers.failures import RuntimeUnreachable
from deepinfer.agent.containers.seen import SeenContainer, exit_of, removed, seen_container
from deepinfer.agent.containers.sidecar import Sidecars
from deepinfer.agent.engine_folders import launch_file
from deepinfer.agent.engine_log import failure_told
from deepinfer.agent.launching import Exit, Mark
from deepinfer.fleet.launch import EX_CONFIG, ContainerServer, EngineLaunch

STOP_SECONDS = 10
_SETTLES_SECONDS = 1.0  # after a death: Docker may be about to remove the container, or to go away itself
_LAST_LINES_SECONDS = 2.0
_SIDECAR_AGAIN_SECONDS = 0.5
_REMOVE_AGAIN_SECONDS = 0.5
_DOCKER_AGAIN_SECONDS = 30.0  # so long a sidecar's failure waits for Docker's word

log = logging.getLogger(__name__)


class ContainerEngine:
    """A `LaunchedEngine`."""

    def __init__(
        self, daemon: Daemon, sidecars: Sidecars, seen: SeenContainer, folder: Path, launch: EngineLaunch | None = None
    ) -> None:
        """Without `launch` it is one that an earlier agent started; its sidecar's launch file has the rest."""
        self.seen = seen
        self.is_adopted = launch is None
        self.is_whole = seen.is_running and (launch is not None or launch_file(folder).exists())
        self._daemon = daemon
        self._sidecars = sidecars
        self._folder = folder
        self._launch = launch
        self._log = ContainerLog(daemon, seen.id, folder)
        self._news = asyncio.Event()
        self._asked_to_end = False

    @property
    def mark(self) -> Mark:
        return self.seen.mark

    @property
    def pid(self) -> int:
        return self.seen.pid

    @property
    def created(self) -> float:
        return self.seen.created

    @property
    def socket(self) -> Path:
        return self._sidecars.socket(self.mark)

    def note_members(self) -> None:
        """Docker knows them."""

    async def ended(self) -> Exit:
        forget = self._daemon.listen(self._hear)
        try:
            async with asyncio.TaskGroup() as tasks:
                printing = tasks.create_task(self._log.follow(), name=f"log of {self.mark}")
                container = tasks.create_task(self._container_ended(), name=f"end of {self.mark}")
                sidecar = tasks.create_task(self._sidecar_failed(), name=f"sidecar of {self.mark}")
                await asyncio.wait({container, sidecar}, return_when=asyncio.FIRST_COMPLETED)
                if not container.done():
                    await asyncio.wait({container}, timeout=await self._patience())
                ended = container.result() if container.done() else sidecar.result()
                if container.done():
                    await asyncio.wait({printing}, timeout=_LAST_LINES_SECONDS)
                for task in (printing, container, sidecar):
                    task.cancel()
            return ended
        finally:
            forget()

    async def terminate(self) -> None:
        self._asked_to_end = True
        with suppress(APIError, RuntimeUnreachable):
            await self._daemon.ask(lambda client: client.containers.get(self.seen.id).stop(timeout=STOP_SECONDS))
        await self.kill()

    async def kill(self) -> None:
        """Waits for Docker as long as it takes: what it may still run must not get a successor."""
        self._asked_to_end = True
        await self._sidecars.end(self.mark, self._folder)  # first: it would take the container's end for a failure
        while not await self._is_removed():
            await self._daemon.reachable()
            await asyncio.sleep(_REMOVE_AGAIN_SECONDS)
        await self._sidecars.end(self.mark, self._folder)  # one that was just being started

    async def _is_removed(self) -> bool:
        try:
            await self._daemon.ask(lambda client: client.containers.get(self.seen.id).remove(force=True, v=True))
            return await self._look() is None
        except NotFound:
            return True
        except (APIError, RuntimeUnreachable) as error:
            log.debug("container %s is not removed yet: %s", self.seen.id, error)
            return False

    async def _patience(self) -> float:
        """A sidecar judges by what it sees of the server; the container's own end tells more."""
        if not self._daemon.trouble:
            return 2 * _SETTLES_SECONDS if (seen := await self._seen_now()) is None or not seen.is_running else 0.0
        return _DOCKER_AGAIN_SECONDS

    async def _container_ended(self) -> Exit:
        connections = self._daemon.connections
        while (seen := await self._seen_now()) is not None and seen.is_running:
            if not self._daemon.trouble:
                connections = self._daemon.connections
            await self._news.wait()
        if seen is None:
            return Exit() if self._asked_to_end else removed()
        if self._asked_to_end or seen.is_out_of_memory:
            return exit_of(seen, runtime_ended=False)
        await self._settled()
        if (again := await self._seen_now()) is None:
            return removed()
        interrupted = self._daemon.connections != connections and not self._daemon.facts.live_restore
        return exit_of(again, runtime_ended=interrupted)

    async def _settled(self) -> None:
        with suppress(TimeoutError, APIError, RuntimeUnreachable):
            async with asyncio.timeout(_SETTLES_SECONDS):
                while not self._daemon.trouble and await self._look() is not None:
                    self._news.clear()
                    await self._news.wait()
        await self._daemon.joined()

    async def _seen_now(self) -> SeenContainer | None:
        """Waits for Docker's word; None: the container is removed."""
        while True:
            self._news.clear()
            try:
                return await self._look()
            except (APIError, RuntimeUnreachable) as error:
                log.debug("container %s cannot be looked at: %s", self.seen.id, error)
                await self._daemon.reachable()
                await asyncio.sleep(_REMOVE_AGAIN_SECONDS)

    async def _look(self) -> SeenContainer | None:
        attributes = await self._daemon.inspected(self.seen.id)
        return None if attributes is None else seen_container(attributes)

    def _hear(self, container: str, action: str) -> None:
        if container in ("", self.seen.id):
            self._news.set()

    async def _sidecar_failed(self) -> Exit:
        """Returns when it has judged the engine, or refuses it; any other end of it is mended."""
        while True:
            process = await asyncio.to_thread(self._sidecars.running, self.mark, self._folder)
            if self._asked_to_end:
                await asyncio.Event().wait()  # the container's end will be told
            if process is None:
                try:
                    process = self._sidecars.start(self.mark, self._sidecar_launch(), self._folder)
                except ValueError:  # only now is it needed
                    damaged = f"{launch_file(self._folder)} was damaged, so its container could not be watched any more"
                    return Exit(reason=damaged, is_sure=True)
            seen = await process.ended()
            if seen.status == EX_CONFIG or failure_told(self._folder) is not None:
                return Exit(seen.status)
            log.warning("the sidecar of %s ended; starting it again", self.mark)
            await process.kill()
            await asyncio.sleep(_SIDECAR_AGAIN_SECONDS)

    def _sidecar_launch(self) -> EngineLaunch:
        if self._launch is None:
            return EngineLaunch.model_validate_json(launch_file(self._folder).read_bytes())
        server = ContainerServer(
            endpoint=self.seen.endpoint,
            api_key=self.seen.api_key,
            kv_events=Path(self.seen.kv_events) if self.seen.kv_events else None,
            pid=self.seen.pid,
        )
        return self._launch.model_copy(update={"container": server})
