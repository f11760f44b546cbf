"""Docker on this node, or what speaks like it: whether it answers, what it tells, questions to it.

The docker package blocks, so every question is asked in a thread of its own, which the process need not wait for when
it ends. A daemon that hangs answers nothing and ends no connection: it is asked for a sign of life now and then.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import docker
import requests
from docker.errors import APIError, DockerException, NotFound

from deepinfer.agent.containers.creation import INSTANCE
from deepinfer.agent.containers.failures import RuntimeUnreachable
from deepinfer.engine_shim.loading_thread import in_thread
from deepinfer.fleet.resources import ContainerRuntime

_PING_SECONDS = 2.0  # between two, and for the answer to one: together less than the 5 s in which a hang is to be told
_ABSENT_SECONDS = 10.0  # between two looks where there never was one
_AGAIN_SECONDS = 0.5
_ANSWER_SECONDS = 60
NO_LIVE_RESTORE = 'a restart of Docker ends its engines: set "live-restore": true in /etc/docker/daemon.json'

_T = TypeVar("_T")
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DaemonFacts:
    """What a daemon says of itself."""

    version: str = ""
    live_restore: bool = False  # containers outlive it
    rootless: bool = False


class Daemon:
    """One per agent. True within `followed`."""

    def __init__(self, environment: Mapping[str, str], instance: str) -> None:
        self.address = environment.get("DOCKER_HOST") or _usual_socket(environment)
        self.facts = DaemonFacts()
        self.trouble = f"{self.address} was not asked yet"
        self.connections = 0  # so often its events were joined: what happened between two was missed
        self.changed = asyncio.Event()  # facts or trouble
        self._environment = {**environment, "DOCKER_HOST": self.address}
        self._filters = {"type": "container", "label": f"{INSTANCE}={instance}"}
        self._client: docker.DockerClient | None = None
        self._is_joined = False  # to its events
        self._asked = False
        self._doubted = asyncio.Event()  # its events broke off: ask at once
        self._listeners: list[Callable[[str, str], None]] = []

    @property
    def state(self) -> ContainerRuntime:
        """For the node's record."""
        warning = "" if self.facts.live_restore or not self.facts.version else NO_LIVE_RESTORE
        return ContainerRuntime(version=self.facts.version, trouble=self.trouble, warning=warning)

    @asynccontextmanager
    async def followed(self) -> AsyncIterator[None]:
        """What it is like is known in the block."""
        async with asyncio.TaskGroup() as tasks:
            following = [tasks.create_task(self._ask_for_life()), tasks.create_task(self._follow_events())]
            yield
            for task in following:
                task.cancel()

    async def heard_of(self) -> None:
        """Wait until it has answered once, or has not."""
        while not self._asked:
            await self.changed.wait()

    async def reachable(self) -> None:
        """Wait until it answers."""
        while self.trouble:
            await self.changed.wait()

    async def joined(self) -> None:
        """Wait until it answers and its events are followed: what it was like before is known to be over."""
        while self.trouble or not self._is_joined:
            await self.changed.wait()

    async def ask(self, question: Callable[[docker.DockerClient], _T], seconds: float | None = _ANSWER_SECONDS) -> _T:
        """Its answer, or docker's own `APIError`. Raises `RuntimeUnreachable` at once while it is in trouble."""
        if self.trouble:
            raise RuntimeUnreachable(self.trouble)
        try:
            with self._failures():
                async with asyncio.timeout(seconds):
                    return await in_thread(lambda: question(self._connected()))
        except RuntimeUnreachable as error:
            self._learn(self.facts, error.sentence)
            raise

    async def inspected(self, container: str) -> Mapping[str, Any] | None:
        """What Docker says of it; None: there is none of that id. Raises as `ask` does."""
        try:
            return await self.ask(lambda client: client.api.inspect_container(container))
        except NotFound:
            return None

    def listen(self, listener: Callable[[str, str], None]) -> Callable[[], None]:
        """Call `listener` with a container's id and what happened to it, and with two empty words whenever anything may
        have; the answer ends it."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def connect(self, seconds: float) -> docker.DockerClient:
        """A client of one's own, for what takes long. Blocks."""
        return docker.DockerClient.from_env(environment=self._environment, timeout=int(seconds), version="auto")

    async def _ask_for_life(self) -> None:
        while True:
            try:
                with self._failures():
                    async with asyncio.timeout(_PING_SECONDS):
                        facts = await in_thread(self._facts)
                self._learn(facts, "")
            except RuntimeUnreachable as error:
                self._learn(self.facts, error.sentence)
            except APIError as error:
                self._learn(self.facts, f"{self.address} answers with an error: {error.explanation or error}")
            self._doubted.clear()
            pause = _PING_SECONDS if self.facts.version or not self.trouble else _ABSENT_SECONDS
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._doubted.wait()

    def _facts(self) -> DaemonFacts:
        """Over a new connection: a Docker that goes away answers for a while on those it has."""
        with closing(self.connect(_ANSWER_SECONDS)) as client:  # which asks for its version
            if self.facts.version and not self.trouble:
                return self.facts
            said: dict[str, Any] = client.info()
            parts = client.version().get("Components") or ()
        rootless = any("rootless" in option for option in said.get("SecurityOptions") or ())
        is_podman = any("Podman" in part.get("Name", "") for part in parts)  # whose service runs no containers itself
        version = said.get("ServerVersion", "")
        return DaemonFacts(
            version=f"Podman {version}" if is_podman else version,
            live_restore=bool(said.get("LiveRestoreEnabled")) or is_podman,
            rootless=rootless or bool(said.get("Rootless")),
        )

    def _learn(self, facts: DaemonFacts, trouble: str) -> None:
        if self._asked and (facts, trouble) == (self.facts, self.trouble):
            return
        self._asked = True
        if trouble:
            self._client = None
        if trouble != self.trouble:
            log.warning("containers: %s", trouble) if trouble else log.info("containers: %s answers", self.address)
        self.facts, self.trouble = facts, trouble
        self._change()

    def _change(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    async def _follow_events(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self.reachable()
            with suppress(RuntimeUnreachable, APIError), self._failures():
                await in_thread(lambda: self._read_events(loop))
            self._is_joined = False
            self._doubted.set()
            await asyncio.sleep(_AGAIN_SECONDS)

    def _read_events(self, loop: asyncio.AbstractEventLoop) -> None:
        """Blocks until the connection ends."""
        with closing(self.connect(_ANSWER_SECONDS)) as client:
            events = client.events(decode=True, filters=self._filters)
            loop.call_soon_threadsafe(self._join)
            for event in events:
                loop.call_soon_threadsafe(self._tell, event.get("id", ""), event.get("Action") or event["status"])

    def _join(self) -> None:
        self.connections += 1
        self._is_joined = True
        self._change()
        self._tell("", "")

    def _tell(self, container: str, action: str) -> None:
        for listener in tuple(self._listeners):
            listener(container, action)

    def _connected(self) -> docker.DockerClient:
        if self._client is None:
            self._client = self.connect(_ANSWER_SECONDS)
        return self._client

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """The docker package lets those of requests through, and wraps some in its own."""
        try:
            yield
        except APIError:
            raise
        except TimeoutError as error:
            raise RuntimeUnreachable(f"{self.address} does not answer; what it runs is unknown") from error
        except (DockerException, requests.RequestException, OSError) as error:
            raise RuntimeUnreachable(_reason(self.address, error)) from error


def _usual_socket(environment: Mapping[str, str]) -> str:
    """Docker's, a rootless one's, Podman's: the first that is there."""
    own = environment.get("XDG_RUNTIME_DIR", f"/run/user/{os.getuid()}")
    usual = ("/var/run/docker.sock", f"{own}/docker.sock", f"{own}/podman/podman.sock", "/run/podman/podman.sock")
    return f"unix://{next((path for path in usual if Path(path).exists()), usual[0])}"


def _reason(address: str, error: BaseException) -> str:
    words = str(error)
    if "FileNotFoundError" in words or "No such file" in words:
        return f"{address} is not there; start Docker or install it, or set DOCKER_HOST for this worker"
    if "PermissionError" in words or "Permission denied" in words:
        return f"{address} may not be used by this user; add it to the group docker, or use rootless Docker"
    if "ConnectionRefused" in words or "Connection refused" in words:
        return f"nobody listens at {address}; start Docker"
    return f"{address} cannot be used: {words}"
