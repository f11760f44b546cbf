"""What this node offers, kept true while the agent runs: engines come and go with `deepinfer engine`.

The folder of the engines' environments tells when something changed; it is also looked at now and then, so that a lost
event delays and loses nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from watchfiles import awatch

from deepinfer.agent.containers.daemon import Daemon
from deepinfer.agent.membership import Membership
from deepinfer.engine_environments.installed import installed_engines
from deepinfer.fleet.resources import Node

_LOOK_ANYWAY_MS = 5_000
_STEP_MS = 250  # how often the watcher hands over what the kernel told it

log = logging.getLogger(__name__)


class NodeRecord:
    """The node as it is now; `changed` is set when it becomes another."""

    def __init__(self, node: Node, engines: Path, daemon: Daemon) -> None:
        self.node = node.model_copy(update={"containers": daemon.state})
        self.changed = asyncio.Event()
        self._engines = engines
        self._daemon = daemon

    @property
    def closed(self) -> tuple[str, ...]:
        """Why nothing new is started here; empty while it is."""
        return (*(("its worker was told to leave",) if self.node.leaving else ()), *self.node.pressure)

    def press(self, sentences: tuple[str, ...]) -> None:
        self._become({"pressure": sentences})

    def leave(self) -> None:
        """What runs here is to be replaced elsewhere."""
        self._become({"leaving": True})

    async def follow_engines(self) -> None:
        """Never returns."""
        async for _ in _looks(self._engines):
            installed = installed_engines(self._engines)
            if installed != self.node.engines:
                names = ", ".join(f"{engine.kind} {engine.version}" for engine in installed)
                log.info("this node's engines are now: %s", names)
                self._become({"engines": installed})

    async def follow_containers(self) -> None:
        """Never returns."""
        while True:
            changed = self._daemon.changed
            if self._daemon.state != self.node.containers:
                self._become({"containers": self._daemon.state})
            await changed.wait()

    async def follow_fleet(self, membership: Membership) -> None:
        """Never returns."""
        while True:
            changed = membership.changed
            known = {"fleet": membership.fleet, "fleet_trouble": membership.trouble}
            if known != {field: getattr(self.node, field) for field in known}:
                self._become(known)
            await changed.wait()

    def _become(self, changes: dict[str, Any]) -> None:
        self.node = self.node.model_copy(update=changes)
        self.changed.set()


async def _looks(folder: Path) -> AsyncIterator[None]:
    """When it is time to look. Only what happens directly in the folder counts: an environment has 50,000 files."""
    while True:
        watched = _made(folder)
        yield
        async for _ in awatch(
            folder,
            recursive=False,
            step=_STEP_MS,
            debounce=2 * _STEP_MS,
            rust_timeout=_LOOK_ANYWAY_MS,
            yield_on_timeout=True,
        ):
            yield
            if _made(folder) != watched:
                break  # somebody put another folder in its place


def _made(folder: Path) -> int:
    """It is there; its inode, because a path can come to mean another folder."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder.stat().st_ino
