"""One connection to an engine's own HTTP server: one call at a time, its answer's bytes passed on as they come.

Its reader holds it back: with a window of the answer not taken, nothing is read from the socket, so that the engine's
server waits. A call that is cancelled ends its connection, which is how such a server learns of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, cast

from deepinfer.engine_shim.answer import Answer
from deepinfer.engine_shim.cork import Cork
from deepinfer.engine_shim.dead_peers import notice_dead_peer
from deepinfer.engine_shim.frames import WINDOW_BYTES, EngineCall, Headers
from deepinfer.engine_shim.http_wire import AnswerReader, request_head
from deepinfer.engine_shim.upstream import failed

_ONE_WRITE_BYTES: Final = 64 << 10


class HttpConnection(asyncio.Protocol):
    """`freed` hears when it can take the next call, `ended` when it never will."""

    def __init__(
        self,
        target: str,
        own: Headers,
        cork: Cork,
        freed: Callable[[HttpConnection], None],
        ended: Callable[[HttpConnection], None],
    ) -> None:
        self.free_since = 0.0
        self.is_over = False
        self._target = target
        self._own = own  # that stand in every request
        self._cork = cork
        self._freed = freed
        self._ended = ended
        self._reader = AnswerReader()
        self._answer: Answer | None = None
        self._heard = False
        self._not_granted = 0
        self._is_paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # of a stream; uvloop's are of no class of asyncio's
        notice_dead_peer(transport)

    def ask(self, call: EngineCall) -> Answer:
        """Send a request; only while no other is open here."""
        answer = self._answer = Answer(self._end, self._grant)
        self._reader.begin(call.method)
        self._heard, self._not_granted = False, 0
        head = request_head(call, self._own)
        if len(call.body) <= _ONE_WRITE_BYTES:
            self._cork.write(self._transport, head + call.body)
        else:
            self._transport.write(head)
            self._transport.write(call.body)
        return answer

    def data_received(self, data: bytes) -> None:
        answer = self._answer
        if answer is None:  # what nobody asked for: a server that says why it closes, at best
            self._end()
            return
        self._heard = True
        reader = self._reader
        body = reader.read(data)
        if reader.over and not reader.fault:
            self._finish(answer, body)
            return
        if not answer.status and reader.head is not None:
            answer.take(reader.head)
        if body:
            answer.add(body)
        if reader.fault:
            self._fail(reader.fault)
        elif body:
            self._not_granted += len(body)
            if self._not_granted >= WINDOW_BYTES:
                self._is_paused = True
                self._transport.pause_reading()

    def eof_received(self) -> None:
        self._closed_by_peer(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed_by_peer(exc)

    def end(self, message: str) -> None:
        """At once; the open answer, if there is one, fails with this message."""
        answer = self._answer
        self._end()
        if answer is not None:
            answer.fail(message)

    def _finish(self, answer: Answer, rest: bytes) -> None:
        reader = self._reader
        self._answer = None
        answer.take_rest(reader.head, rest)
        # A server may answer without having read all of the request. What is left of it would begin the next one.
        if reader.keeps_alive and not self._transport.get_write_buffer_size():
            self._freed(self)
        else:
            self._end()

    def _closed_by_peer(self, error: Exception | None) -> None:
        answer = self._answer
        if answer is None:
            self._end()
        elif error is None and self._reader.is_whole_at_end():
            self._end()
            answer.take_rest(None, b"")
        else:
            answer.is_unseen = not self._heard and (error is None or isinstance(error, ConnectionError))
            when = "in the middle of its answer" if answer.status else "before it answered"
            self._fail(f"it closed the connection {when}{f' ({error})' if error else ''}")

    def _fail(self, reason: str) -> None:
        self.end(failed(self._target, reason))

    def _end(self) -> None:
        self.is_over, self._answer = True, None
        self._transport.abort()
        self._ended(self)

    def _grant(self, count: int) -> None:
        self._not_granted -= count
        if self._is_paused and self._not_granted < WINDOW_BYTES:
            self._is_paused = False
            self._transport.resume_reading()
