"""What one request of a Call stream gets back.

Pieces that arrive while the reader is away are kept up to a bound, so one slow reader neither holds up the requests it
shares the stream with nor fills the memory: past the bound its request is cancelled. A piece larger than the bound is
taken as long as no more than the bound waits before it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from deepinfer.engine_shim.frames import AnswerFrame, Body, End, Failure, Head, Headers
from deepinfer.fleet.errors import EngineFailed

BUFFERED_BYTES: Final = 1 << 20


class Answer:
    """The head is there when a caller gets it; the body is read by `async for`, once."""

    def __init__(self, cancel: Callable[[], None], buffered_bytes: int = BUFFERED_BYTES) -> None:
        self.status = 0
        self.headers: Headers = ()
        self._cancel = cancel
        self._limit = buffered_bytes
        self._pieces: list[bytes] = []
        self._waiting_bytes = 0
        self._ended = False
        self._failure: str | None = None
        self._reader: asyncio.Future[None] | None = None

    def __aiter__(self) -> Answer:
        return self

    async def __anext__(self) -> bytes:
        """What came since the last piece, as one."""
        while not self._pieces and not self._ended:
            await self._something()
        if self._pieces:
            piece = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
            self._pieces.clear()
            self._waiting_bytes = 0
            return piece
        if self._failure is not None:
            raise EngineFailed(self._failure)
        raise StopAsyncIteration

    async def read(self) -> bytes:
        """The whole rest of the body."""
        return b"".join([piece async for piece in self])

    def cancel(self) -> None:
        """The answer is not wanted any more: the engine stops making it. May be called at any time, also twice."""
        if not self._ended:
            self._cancel()
            self.fail("The answer was cancelled.")

    async def until_head(self) -> None:
        """`EngineFailed` when the engine fails before it; cancelled in the engine when the caller gives up."""
        try:
            while not self.status and not self._ended:
                await self._something()
        except asyncio.CancelledError:
            self.cancel()
            raise
        if not self.status:
            raise EngineFailed(self._failure)

    def take(self, frame: AnswerFrame) -> None:
        """A frame of this answer has come."""
        if self._ended:
            return  # it was on its way while we cancelled
        match frame:
            case Body(_, data):
                self._add(data)
            case Head(_, status, headers):
                self.status, self.headers = status, headers
            case End():
                self._ended = True
            case Failure(_, message):
                self.fail(message)
        self._wake()

    def fail(self, message: str) -> None:
        """Nothing will follow. What has come already can still be read, then `EngineFailed` is raised."""
        if not self._ended:
            self._ended = True
            self._failure = message
            self._wake()

    def _add(self, data: bytes) -> None:
        if self._waiting_bytes > self._limit:
            self._cancel()
            self.fail(f"The answer was read too slowly: {self._waiting_bytes} bytes of it wait, so it was cancelled.")
        elif data:
            self._pieces.append(data)
            self._waiting_bytes += len(data)

    async def _something(self) -> None:
        self._reader = asyncio.get_running_loop().create_future()
        try:
            await self._reader
        finally:
            self._reader = None

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)
