"""The caller's end of a connection for calls: many requests out, many answers back, told apart by number.

When the connection breaks, every open answer fails; a broken one is never used again.
"""

from __future__ import annotations

import asyncio
from typing import cast

from msgspec.structs import replace

from deepinfer.engine_shim.answer import Answer
from deepinfer.engine_shim.call_wire import BODY, FrameReader, NotUnderstood, answer_from_bytes, call_to_bytes, hello
from deepinfer.engine_shim.connecting import connect
from deepinfer.engine_shim.dead_peers import notice_dead_peer
from deepinfer.engine_shim.frames import (
    FRAME_BYTES,
    AnswerFrame,
    CallFrame,
    Cancel,
    Credit,
    End,
    EngineCall,
    Failure,
    MoreBody,
    Open,
    cut,
)
from deepinfer.engine_shim.outbox import Outbox
from deepinfer.engine_shim.upstream import failed


async def connected(endpoint: str, key: bytes, target: str) -> CallStream:
    """A connection to the engine that told this endpoint and key. `EngineFailed` when nobody takes it."""
    return await connect(lambda: CallStream(key, target), endpoint, target)


class CallStream(asyncio.Protocol):
    """`broken` is why it cannot be used any more; "" while it can."""

    def __init__(self, key: bytes, target: str) -> None:
        self.broken = ""
        self._key = key
        self._target = target
        self._answers: dict[int, Answer] = {}
        self._last_stream = 0
        self._reader = FrameReader()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # of a stream; uvloop's are of no class of asyncio's
        notice_dead_peer(transport)
        self._outbox = Outbox(self._transport)
        self._outbox.put(hello(self._key))

    @property
    def usable(self) -> bool:
        return not self.broken

    async def call(self, call: EngineCall, asked: Answer | None = None) -> Answer:
        answer = asked or self.ask(call)
        await answer.until_head()
        return answer

    def ask(self, call: EngineCall) -> Answer:
        self._last_stream += 1
        stream = self._last_stream
        answer = Answer(lambda: self._cancel(stream), lambda count: self._put(Credit(stream, count)))
        if self.broken:
            answer.fail(self.broken)
        else:
            self._answers[stream] = answer
            self._put(*_frames(stream, call))
        return answer

    def data_received(self, data: bytes) -> None:
        try:
            for kind, stream, content in self._reader.read(data):
                if kind != BODY:
                    self._take(answer_from_bytes(kind, stream, content))
                elif (answer := self._answers.get(stream)) is not None:  # else it was cancelled while this was coming
                    answer.add(content)
        except NotUnderstood as error:
            self._fail(str(error))

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(f"it closed the connection{f' ({exc})' if exc else ''}")

    def watch_ended(self, failure: str) -> None:
        """Whoever is not heard any more (it may hang) will not end its answers either."""
        if failure:
            self._fail(failure)

    def engine_failed(self, message: str) -> None:
        """It tells every open answer itself."""

    def close(self, message: str) -> None:
        """At once; every open answer fails with this message."""
        if not self.broken:
            self.broken = message
            self._transport.abort()
            answers, self._answers = self._answers, {}
            for answer in answers.values():
                answer.fail(self.broken)

    def _fail(self, reason: str) -> None:
        self.close(failed(self._target, reason))

    def _take(self, frame: AnswerFrame) -> None:
        answer = self._answers.get(frame.stream)
        if answer is not None:
            if isinstance(frame, End | Failure):
                del self._answers[frame.stream]
            answer.take(frame)

    def _cancel(self, stream: int) -> None:
        if self._answers.pop(stream, None) is not None:
            self._put(Cancel(stream))

    def _put(self, *frames: CallFrame) -> None:
        self._outbox.put(*map(call_to_bytes, frames))


def _frames(stream: int, call: EngineCall) -> list[CallFrame]:
    """One frame, unless the body is larger than a frame may be."""
    if len(call.body) <= FRAME_BYTES:
        return [Open(stream, call, whole=True)]
    pieces = cut(call.body)
    last = len(pieces) - 1
    opening = Open(stream, replace(call, body=b""), whole=False)
    return [opening, *(MoreBody(stream, piece, last=at == last) for at, piece in enumerate(pieces))]
