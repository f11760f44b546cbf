"""The engine's end of one Call stream: runs each request's application call, and sends what they make.

Everything that all requests of the stream made in one turn of the event loop leaves in one message. When the peer reads
slowly, what waits is bounded: applications then wait in their `send`. When the peer is gone, all of its requests are
cancelled.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterable, Awaitable, Callable
from dataclasses import replace
from typing import Final

from deepinfer.engine_shim.asgi import AsgiExchange
from deepinfer.engine_shim.frames import (
    AnswerFrame,
    Body,
    CallFrame,
    Cancel,
    EngineCall,
    Failure,
    MoreBody,
    Open,
    in_messages,
)
from deepinfer.engine_shim.served_engine import AsgiApp

_WAITING_BYTES: Final = 1 << 20
_REQUEST_BYTES: Final = 256 << 20

log = logging.getLogger(__name__)

Write = Callable[[list[AnswerFrame]], Awaitable[None]]


class CallConnection:
    """Lives as long as the RPC; its tasks end with it."""

    def __init__(self, app: AsgiApp, write: Write) -> None:
        self._app = app
        self._write = write
        self._bodies: dict[int, tuple[EngineCall, list[bytes]]] = {}  # still coming
        self._running: dict[int, asyncio.Task[None]] = {}
        self._outgoing: list[AnswerFrame] = []
        self._waiting_bytes = 0
        self._queued = asyncio.Event()
        self._room = asyncio.Event()
        self._over = False

    async def serve(self, requests: AsyncIterable[list[CallFrame]]) -> None:
        """Until the peer says it is done and has all answers; cancelled when the peer is gone."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._send())
            async for frames in requests:
                for frame in frames:
                    self._take(frame, tasks)
            if self._running:
                await asyncio.wait(list(self._running.values()))
            self._over = True
            self._queued.set()

    def fail(self, reason: str) -> None:
        """Every open answer ends here and now, whatever its application still does."""
        for stream in (*self._bodies, *self._running):
            self._queue(Failure(stream, reason))
        self._bodies.clear()
        for task in self._running.values():
            task.cancel()

    def _take(self, frame: CallFrame, tasks: asyncio.TaskGroup) -> None:
        match frame:
            case Open(stream, call, True):
                self._start(stream, call, tasks)
            case Open(stream, call, False):
                self._bodies[stream] = (call, [call.body])
            case MoreBody(stream, data, last) if stream in self._bodies:
                self._grow(stream, data)
                if last and stream in self._bodies:
                    call, pieces = self._bodies.pop(stream)
                    self._start(stream, replace(call, body=b"".join(pieces)), tasks)
            case Cancel(stream):
                self._bodies.pop(stream, None)
                if stream in self._running:
                    self._running[stream].cancel()

    def _grow(self, stream: int, data: bytes) -> None:
        pieces = self._bodies[stream][1]
        pieces.append(data)
        if sum(map(len, pieces)) > _REQUEST_BYTES:
            del self._bodies[stream]
            self._queue(Failure(stream, f"The request's body is larger than {_REQUEST_BYTES} bytes."))

    def _start(self, stream: int, call: EngineCall, tasks: asyncio.TaskGroup) -> None:
        task = self._running[stream] = tasks.create_task(self._answer(stream, call))
        task.add_done_callback(lambda _: self._running.pop(stream, None))

    async def _answer(self, stream: int, call: EngineCall) -> None:
        try:
            await AsgiExchange(stream, call, self._put).run(self._app)
        except Exception as error:  # one request's bug must not end the others of this connection
            log.exception("%s %s failed", call.method, call.path)
            self._queue(Failure(stream, f"The engine's application failed ({type(error).__name__}); see its log."))

    async def _put(self, frame: AnswerFrame) -> None:
        self._queue(frame)
        while self._waiting_bytes > _WAITING_BYTES:
            self._room.clear()
            await self._room.wait()

    def _queue(self, frame: AnswerFrame) -> None:
        self._outgoing.append(frame)
        if isinstance(frame, Body):
            self._waiting_bytes += len(frame.data)
        self._queued.set()

    async def _send(self) -> None:
        while self._outgoing or not self._over:
            await self._queued.wait()
            self._queued.clear()
            frames, self._outgoing = self._outgoing, []
            for message in in_messages(frames):
                await self._write(message)
            self._waiting_bytes = sum(len(frame.data) for frame in self._outgoing if isinstance(frame, Body))
            self._room.set()
