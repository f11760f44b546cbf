"""The gateway processes of one `serve`, to each other: a unix socket for each in a folder that is theirs alone.

A question is one line, "alive", "metrics" or "decision ID"; the answer is all that follows. Who does not answer in
time is left out.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from deepinfer.control_plane.gateway.asgi import Reply
from deepinfer.control_plane.gateway.merged_pages import merged
from deepinfer.fleet.places import runtime_dir

PAGE_SECONDS = 1.0
"""What a stopped sibling may cost whoever asks for /metrics."""
_LINE_BYTES = 256
Decided = Callable[[str], bytes]
"""How a request's replica was chosen, as JSON; b"" where it is not known."""


def _knows_none(request: str) -> bytes:
    return b""


class Siblings:
    """Seen from process `number` of `count`; 0 is the main one, which outlives the others' ends. `folder` is made."""

    def __init__(self, folder: Path = Path(), number: int = 0, count: int = 1) -> None:
        self.folder = folder
        self._number = number
        self._others = [other for other in range(count) if other != number]

    @classmethod
    def of_this_process(cls, count: int) -> Siblings:
        """As the main one. A gateway that is alone has no need of a folder."""
        return cls(runtime_dir() / f"serve-{os.getpid()}", 0, count) if count > 1 else cls()

    @asynccontextmanager
    async def answering(self, own_page: Callable[[], Reply], decided: Decided = _knows_none) -> AsyncIterator[None]:
        """They may ask this process while the block runs."""
        if not self._others:
            yield
            return

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with suppress(ConnectionError, TimeoutError):
                async with asyncio.timeout(PAGE_SECONDS):
                    word, _, request = (await reader.readline()).decode("latin-1").rstrip("\n").partition(" ")
                    if word == "decision":
                        writer.write(decided(request))
                    else:
                        writer.write(own_page().body if word == "metrics" else b"yes")
                    await writer.drain()
            writer.close()

        self.folder.mkdir(mode=0o700, exist_ok=True)
        own = self._socket(self._number)
        own.unlink(missing_ok=True)  # a predecessor's that was killed
        try:
            async with await asyncio.start_unix_server(answer, own, limit=_LINE_BYTES):
                yield
        finally:
            own.unlink(missing_ok=True)
            with suppress(OSError):
                self.folder.rmdir()  # by whoever is the last

    def forget(self, other: int) -> None:
        """It was killed, and can remove nothing itself."""
        self._socket(other).unlink(missing_ok=True)

    async def page(self, own: Reply) -> Reply:
        """Everybody's figures: ours, and those of whoever answers."""
        if not self._others:
            return own
        told = await asyncio.gather(*(self._asked(other, b"metrics\n", PAGE_SECONDS) for other in self._others))
        pages = {other: page for other, page in zip(self._others, told, strict=True) if page.endswith(b"\n")}
        return Reply(own.status, merged({self._number: own.body, **pages}), own.headers, own.content_type)

    async def decision(self, request: str) -> bytes:
        """Of the one who has it; b"" if nobody does."""
        line = b"decision %b\n" % request.encode("latin-1", "replace")[: _LINE_BYTES // 2]
        told = await asyncio.gather(*(self._asked(other, line, PAGE_SECONDS) for other in self._others))
        return next(filter(None, told), b"")

    async def is_alive(self, other: int, seconds: float) -> bool:
        """Whether its loop turns."""
        return bool(await self._asked(other, b"alive\n", seconds))

    async def _asked(self, other: int, word: bytes, seconds: float) -> bytes:
        """b"" if it does not answer in time."""
        try:
            async with asyncio.timeout(seconds):
                reader, writer = await asyncio.open_unix_connection(self._socket(other))
                try:
                    writer.write(word)
                    return await reader.read()
                finally:
                    writer.close()
        except (OSError, TimeoutError):
            return b""

    def _socket(self, number: int) -> Path:
        return self.folder / f"{number}.sock"
