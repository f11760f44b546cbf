"""An ASGI application called without a socket: an EngineCall in, answer frames out."""

from __future__ import annotations

import asyncio
from typing import Any

from deepinfer.engine_shim.call_wire import BODY, answer_to_bytes, start
from deepinfer.engine_shim.frames import FRAME_BYTES, WINDOW_BYTES, End, EngineCall, Failure, Head, cut
from deepinfer.engine_shim.outbox import Outbox
from deepinfer.engine_shim.served_engine import AsgiApp, Message


class AsgiExchange:
    """One request and its answer. The application waits in `send` while no more of its answer may be on its way."""

    def __init__(self, stream: int, call: EngineCall, outbox: Outbox) -> None:
        self._stream = stream
        self._call = call
        self._put = outbox.put
        self._window = WINDOW_BYTES
        self._granted = asyncio.Event()
        self._body_given = False
        self._head: Head | None = None
        self._ended = False
        self._disconnected = asyncio.Event()
        self._listeners = 0

    async def run(self, app: AsgiApp) -> None:
        """Whatever the application raises is the caller's to report."""
        try:
            await app(self._scope(), self._receive, self._send)
        except asyncio.CancelledError:
            self._disconnected.set()  # for tasks that the application started
            raise
        if not self._ended:
            self._put(answer_to_bytes(Failure(self._stream, "The engine's application ended before its answer did.")))

    def client_left(self) -> bool:
        """Whether the application listens for it, and so ends by itself; one that does not must be cancelled.

        vLLM runs its work in a task of its own, which goes on to the last token when only its parent is cancelled.
        """
        self._ended = True
        self._disconnected.set()
        return self._listeners > 0

    def grant(self, count: int) -> None:
        """The reader has read so much."""
        self._window += count
        self._granted.set()

    def _scope(self) -> dict[str, Any]:
        call = self._call
        return {
            "type": "http",
            # From 2.4 on an application need not watch for the client's leaving: where it does not, it is cancelled.
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": call.method,
            "scheme": "http",
            "path": call.path,
            "raw_path": call.path.encode(),
            "query_string": call.query,
            "root_path": "",
            "headers": list(call.headers),
            "client": None,
            "server": None,
            "state": {},
        }

    async def _receive(self) -> Message:
        if not self._body_given:
            self._body_given = True
            return {"type": "http.request", "body": self._call.body, "more_body": False}
        self._listeners += 1
        try:
            await self._disconnected.wait()
        finally:
            self._listeners -= 1
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        """The head is held back until there is a body, as servers do: until then an error can still be told."""
        kind = message["type"]
        if kind == "http.response.start":
            headers = tuple((bytes(name).lower(), bytes(value)) for name, value in message.get("headers", ()))
            self._head = Head(self._stream, message["status"], headers)
        elif kind == "http.response.body" and not self._ended:
            if self._head is not None:
                self._put(answer_to_bytes(self._head))
                self._head = None
            body = message.get("body", b"")
            if 0 < len(body) <= FRAME_BYTES and self._window > 0:  # nearly always, and there once for every token
                self._window -= len(body)
                self._put(start(BODY, self._stream, len(body)), body)
            elif body:
                await self._send_in_pieces(bytes(body))
            if not message.get("more_body", False):
                self._ended = True
                self._disconnected.set()
                self._put(answer_to_bytes(End(self._stream)))

    async def _send_in_pieces(self, body: bytes) -> None:
        for piece in cut(body):
            while self._window <= 0:
                self._granted.clear()
                await self._granted.wait()
            self._window -= len(piece)
            self._put(start(BODY, self._stream, len(piece)), piece)
