"""The caller's end of one Call stream: many requests out, many answers back, told apart by number.

Frames queued during one turn of the event loop leave in one message. When the stream breaks, every open answer fails;
a broken stream is never used again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable
from dataclasses import replace

import grpc

from deepinfer.engine_shim.answer import Answer
from deepinfer.engine_shim.frames import (
    FRAME_BYTES,
    AnswerFrame,
    CallFrame,
    Cancel,
    End,
    EngineCall,
    Failure,
    MoreBody,
    Open,
    cut,
    in_messages,
)

Connect = Callable[[AsyncIterator[list[CallFrame]]], AsyncIterable[list[AnswerFrame]]]
"""Starts the RPC over our messages and gives its messages."""


class CallStream:
    """Owns the task that reads; `close` ends it."""

    def __init__(self, connect: Connect, target: str) -> None:
        self._target = target
        self._answers: dict[int, Answer] = {}
        self._last_stream = 0
        self._outgoing: list[CallFrame] = []
        self._queued = asyncio.Event()
        self._over = False
        self._reading = asyncio.create_task(self._read(connect), name=f"answers of {target}")

    @property
    def broken(self) -> bool:
        return self._reading.done()

    def open(self, call: EngineCall) -> Answer:
        """Send a request; its answer fills as the engine makes it."""
        self._last_stream += 1
        stream = self._last_stream
        answer = self._answers[stream] = Answer(lambda: self._cancel(stream))
        self._queue(*_frames(stream, call))
        return answer

    async def close(self) -> None:
        self._reading.cancel()
        await asyncio.wait([self._reading])

    def _cancel(self, stream: int) -> None:
        if self._answers.pop(stream, None) is not None:
            self._queue(Cancel(stream))

    def _queue(self, *frames: CallFrame) -> None:
        self._outgoing += frames
        self._queued.set()

    async def _messages(self) -> AsyncIterator[list[CallFrame]]:
        """What gRPC sends. It asks for the next message when the last one is on its way."""
        while not self._over:
            await self._queued.wait()
            self._queued.clear()
            frames, self._outgoing = self._outgoing, []
            for message in in_messages(frames):
                yield message

    async def _read(self, connect: Connect) -> None:
        reason = "it closed the connection"
        try:
            async for frames in connect(self._messages()):
                for frame in frames:
                    self._take(frame)
        except grpc.RpcError as error:
            reason = reason_of(error)
        except asyncio.CancelledError:
            reason = "this side closed the connection"
            raise
        finally:
            self._over = True
            self._queued.set()  # gRPC leaves its task waiting in `_messages` when the other side ends the stream
            self._fail_all(f"The engine at {self._target} failed: {reason}.")

    def _take(self, frame: AnswerFrame) -> None:
        answer = self._answers.get(frame.stream)
        if answer is not None:  # else it was cancelled while the frame was on its way
            answer.take(frame)
            if isinstance(frame, End | Failure):
                del self._answers[frame.stream]

    def _fail_all(self, message: str) -> None:
        answers, self._answers = self._answers, {}
        for answer in answers.values():
            answer.fail(message)


def _frames(stream: int, call: EngineCall) -> list[CallFrame]:
    """One frame, unless the body is larger than a frame may be."""
    if len(call.body) <= FRAME_BYTES:
        return [Open(stream, call, whole=True)]
    pieces = cut(call.body)
    last = len(pieces) - 1
    opening = Open(stream, replace(call, body=b""), whole=False)
    return [opening, *(MoreBody(stream, piece, last=at == last) for at, piece in enumerate(pieces))]


def reason_of(error: grpc.RpcError) -> str:
    """gRPC's own words, in one line."""
    if not isinstance(error, grpc.aio.AioRpcError):
        return str(error)
    return f"{error.code().name.lower()}: {' '.join((error.details() or '').split())}".rstrip(": ")
