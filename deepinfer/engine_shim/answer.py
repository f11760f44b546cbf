"""What one request of a connection gets back.

No more of it than a window is on its way or waits here, so that one slow reader neither holds up the requests it shares
the connection with nor fills the memory: its engine waits. What was read is granted anew, half a window at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from deepinfer.engine_shim.frames import (
    FRAME_BYTES,
    TOLERATED_BYTES,
    WINDOW_BYTES,
    AnswerFrame,
    Body,
    End,
    Failure,
    Head,
    Headers,
)
from deepinfer.fleet.errors import EngineFailed

_DUE = WINDOW_BYTES // 2


class Answer:
    """The head is there when a caller gets it; the body is read once: by `async for`, or with `pour`."""

    status = 0
    headers: Headers = ()
    when_heard: Callable[[], None] | None = None  # called when more of it has come, or its end
    is_unseen = False  # it failed, and its call may not have been seen: the connection was closed before
    _poured = False
    _not_granted = 0  # bytes that came since the last grant
    _ended = False
    _failure: str | None = None
    _reader: asyncio.Future[None] | None = None

    def __init__(self, cancel: Callable[[], None], grant: Callable[[int], None]) -> None:
        self._cancel = cancel
        self._grant = grant
        self._pieces: list[bytes] = []
        self._write: Callable[[bytes], None] = self._pieces.append

    @property
    def is_over(self) -> bool:
        """Nothing more will come."""
        return self._ended

    @property
    def waiting(self) -> int:
        """Bytes that came and were not granted anew: all, while nothing was read."""
        return self._not_granted

    @property
    def unread(self) -> bytes | None:
        """The whole body while nothing of it was read; None for one that is not whole."""
        return b"".join(self._pieces) if self._ended and self._failure is None else None

    def __aiter__(self) -> Answer:
        return self

    async def __anext__(self) -> bytes:
        """What came since the last piece, as one."""
        while not self._pieces and not self._ended:
            await self._something()
        if self._pieces:
            piece = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
            self._pieces.clear()
            self._grant_if_due()
            return piece
        self._raise_failure()
        raise StopAsyncIteration

    async def read(self) -> bytes:
        """The whole rest of the body."""
        return b"".join([piece async for piece in self])

    async def pour(self, write: Callable[[bytes], None], drained: Callable[[], Awaitable[None]]) -> None:
        """Call `write` with each piece the moment it comes, until the end; `EngineFailed` when the engine fails.

        No task wakes up for a piece. `drained` is awaited before more is granted than a window.
        """
        for piece in self._pieces:
            write(piece)
        self._pieces.clear()
        self._write, self._poured = write, True
        while not self._ended:
            if self._not_granted >= _DUE:
                await drained()
                self._grant_if_due()
            else:
                await self._something()
        self._raise_failure()

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

    def add(self, data: bytes) -> None:
        """A piece of the body has come."""
        if self._ended:
            return  # it was on its way while we cancelled
        self._not_granted += len(data)
        self._write(data)
        if not self._poured or self._not_granted >= _DUE:
            self._check_window()
            self._wake()

    def take(self, frame: AnswerFrame) -> None:
        """A frame of this answer has come."""
        match frame:
            case Body(_, data):
                self.add(data)
            case Head(_, status, headers) if not self._ended:
                self.status, self.headers = status, headers
                self._wake()
            case End() if not self._ended:
                self._ended = True
                self._wake()
            case Failure(_, message):
                self.fail(message)

    def take_rest(self, head: Head | None, body: bytes) -> None:
        """All that was still to come, at once; the head too, if it was not there."""
        if self._ended:
            return
        if head is not None and not self.status:
            self.status, self.headers = head.status, head.headers
        if body:
            self._write(body)
        self._ended = True
        self._wake()

    def fail(self, message: str) -> None:
        """Nothing will follow. What has come already can still be read, then `EngineFailed` is raised."""
        if not self._ended:
            self._ended = True
            self._failure = message
            self._wake()

    def _check_window(self) -> None:
        if self._not_granted > TOLERATED_BYTES + FRAME_BYTES:
            self._cancel()
            self.fail(f"The engine sent {self._not_granted} bytes of an answer where {TOLERATED_BYTES} were granted.")

    def _grant_if_due(self) -> None:
        if self._not_granted >= _DUE and not self._ended:
            self._grant(self._not_granted)
            self._not_granted = 0

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise EngineFailed(self._failure)

    async def _something(self) -> None:
        self._reader = asyncio.get_running_loop().create_future()
        try:
            await self._reader
        finally:
            self._reader = None

    def _wake(self) -> None:
        if self.when_heard is not None:
            self.when_heard()
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)
