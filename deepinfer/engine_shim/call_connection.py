"""The engine's end of a connection for calls: runs each request's application call, and sends what they make.

What waits to be sent is bounded by the requests' windows. When the peer is gone, all of its requests are cancelled.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from hmac import compare_digest
from typing import Final, cast

from msgspec.structs import replace

from deepinfer.engine_shim.asgi import AsgiExchange
from deepinfer.engine_shim.call_wire import HELLO, FrameReader, NotUnderstood, answer_to_bytes, call_from_bytes
from deepinfer.engine_shim.dead_peers import notice_dead_peer
from deepinfer.engine_shim.frames import CallFrame, Cancel, Credit, EngineCall, Failure, MoreBody, Open
from deepinfer.engine_shim.outbox import Outbox
from deepinfer.engine_shim.served_engine import AsgiApp

_REQUEST_BYTES: Final = 256 << 20
_LEAVING_SECONDS: Final = 5.0
"""How long an application that was told of its client's leaving may take to end."""

log = logging.getLogger(__name__)


class CallConnection(asyncio.Protocol):
    """Its tasks end with it; whoever listens awaits `tasks` in the end."""

    def __init__(self, app: AsgiApp, key: bytes) -> None:
        self.tasks: set[asyncio.Task[None]] = set()
        self._app = app
        self._key = key
        self._reader = FrameReader()
        self._transport: asyncio.Transport | None = None
        self._is_known = False
        self._coming: dict[int, _Coming] = {}
        self._running: dict[int, tuple[AsgiExchange, asyncio.Task[None]]] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # of a stream; uvloop's are of no class of asyncio's
        notice_dead_peer(transport)
        self._outbox = Outbox(self._transport)

    def fail(self, reason: str) -> None:
        """Every open answer ends here and now, whatever its application still does."""
        for stream in (*self._coming, *self._running):
            self._fail(stream, reason)
        self._coming.clear()
        for task in self.tasks:
            task.cancel()

    def data_received(self, data: bytes) -> None:
        try:
            for kind, stream, content in self._reader.read(data):
                if self._is_known:
                    self._take(call_from_bytes(kind, stream, content))
                else:
                    self._meet(kind, content)
        except NotUnderstood as error:
            log.warning("a connection is closed: %s", error)
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.close()

    def close(self) -> None:
        """At once."""
        if self._transport is not None:
            self._transport.abort()
        self._coming.clear()
        for exchange, task in self._running.values():
            _end(exchange, task)

    def _meet(self, kind: int, key: bytes) -> None:
        if kind != HELLO or not compare_digest(key, self._key):
            raise NotUnderstood("Its caller meant another engine, or is none of deepinfer's.")
        self._is_known = True

    def _take(self, frame: CallFrame) -> None:
        match frame:
            case Credit(stream, count) if stream in self._running:
                self._running[stream][0].grant(count)
            case Open(stream, call, whole):
                self._coming[stream] = _Coming(call, [call.body], len(call.body))
                self._start_if(stream, whole)
            case MoreBody(stream, data, last) if stream in self._coming:
                self._coming[stream].add(data)
                self._start_if(stream, last)
            case Cancel(stream):
                self._coming.pop(stream, None)
                if stream in self._running:
                    _end(*self._running[stream])

    def _start_if(self, stream: int, whole: bool) -> None:
        coming = self._coming[stream]
        if coming.size > _REQUEST_BYTES:
            del self._coming[stream]
            self._fail(stream, f"The request's body is larger than {_REQUEST_BYTES} bytes.")
        elif whole:
            del self._coming[stream]
            self._start(stream, coming.call())

    def _start(self, stream: int, call: EngineCall) -> None:
        exchange = AsgiExchange(stream, call, self._outbox)
        task = asyncio.create_task(self._answer(stream, call, exchange))
        self._running[stream] = exchange, task
        self.tasks.add(task)
        task.add_done_callback(lambda _: self._forget(stream, task))

    def _forget(self, stream: int, task: asyncio.Task[None]) -> None:
        self._running.pop(stream, None)
        self.tasks.discard(task)

    async def _answer(self, stream: int, call: EngineCall, exchange: AsgiExchange) -> None:
        try:
            await exchange.run(self._app)
        except Exception as error:  # one request's bug must not end the others of this connection
            log.exception("%s %s failed", call.method, call.path)
            self._fail(stream, f"The engine's application failed ({type(error).__name__}); see its log.")

    def _fail(self, stream: int, message: str) -> None:
        self._outbox.put(answer_to_bytes(Failure(stream, message)))


def _end(exchange: AsgiExchange, task: asyncio.Task[None]) -> None:
    """Nobody waits for its answer any more."""
    if exchange.client_left():
        asyncio.get_running_loop().call_later(_LEAVING_SECONDS, task.cancel)
    else:
        task.cancel()


@dataclass(slots=True)
class _Coming:
    """A request whose body is not whole yet."""

    opening: EngineCall
    pieces: list[bytes]
    size: int

    def add(self, data: bytes) -> None:
        self.pieces.append(data)
        self.size += len(data)

    def call(self) -> EngineCall:
        return self.opening if len(self.pieces) == 1 else replace(self.opening, body=b"".join(self.pieces))
