"""What a container prints, written into its placement's log as it comes: kept when the container is gone.

How far it came is written beside it, so that the next agent goes on there.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from docker.errors import APIError, NotFound

from deepinfer.agent.containers.daemon import Daemon
from deepinfer.agent.containers.failures import RuntimeUnreachable
from deepinfer.agent.containers.seen import seconds_of
from deepinfer.agent.engine_log import appended_log

POSITION = "log.position"
_AGAIN_SECONDS = 0.5
_POSITION_BYTES = 40  # however long the time is written
_SILENCE_SECONDS = 86_400  # an idle engine prints nothing

log = logging.getLogger(__name__)


class ContainerLog:
    """Of one container."""

    def __init__(self, daemon: Daemon, container: str, folder: Path) -> None:
        self._daemon = daemon
        self._container = container
        self._folder = folder
        self._position = folder / POSITION
        self._is_given_up = False
        self._lost = False  # the disk took no more

    async def follow(self) -> None:
        """Returns when the container has ended and all is written."""
        try:
            while not await self._ended():
                await self._daemon.reachable()
                await asyncio.sleep(_AGAIN_SECONDS)
        finally:
            self._is_given_up = True

    async def _ended(self) -> bool:
        """One connection."""
        try:
            await self._daemon.ask(lambda _: self._copy(), None)
            return not await self._daemon.ask(lambda client: client.containers.get(self._container).status == "running")
        except NotFound:
            return True
        except (APIError, RuntimeUnreachable) as error:
            log.debug("the log of container %s broke off: %s", self._container, error)
            return False

    def _copy(self) -> None:
        """Blocks. Ours alone: no other thread writes here at the same time."""
        client = self._daemon.connect(_SILENCE_SECONDS)
        last = self._came_to()
        since = seconds_of(last) if last else 0
        try:
            pieces = client.api.logs(
                self._container, stream=True, follow=True, timestamps=True, since=int(since) or None
            )
            with appended_log(self._folder) as out:
                for when, line in _lines(pieces):
                    if self._is_given_up:
                        return
                    if when > last:
                        self._keep(when, line, out)
        finally:
            client.close()

    def _came_to(self) -> str:
        """The time of the last line that is written; "" if there is none, or nobody knows any more."""
        try:
            last = self._position.read_text().strip()
            seconds_of(last)
        except FileNotFoundError:
            return ""
        except ValueError:
            log.warning("%s was damaged; the log of container %s is written again", self._position, self._container)
            return ""
        return last

    def _keep(self, when: str, line: bytes, out: BinaryIO) -> None:
        """Where a disk is full, lines are lost, but neither the place in the log nor the container."""
        try:
            os.write(out.fileno(), line)
            with os.fdopen(os.open(self._position, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600), "wb") as position:
                os.pwrite(position.fileno(), when.ljust(_POSITION_BYTES).encode(), 0)  # in its place: needs no room
        except OSError as error:
            if not self._lost:
                log.warning("lines of container %s are lost: %s (%s)", self._container, error.strerror, self._folder)
            self._lost = True
        else:
            self._lost = False


def _lines(pieces: Iterator[bytes]) -> Iterator[tuple[str, bytes]]:
    """Docker puts a time before each line: "2026-01-01T00:00:00.000000001Z ". One longer than 16 KiB comes in parts."""
    rest = b""
    for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n")
        for line in whole:
            when, _, text = line.partition(b" ")
            yield when.decode("ascii", "replace"), text + b"\n"
