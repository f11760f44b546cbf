"""An ASGI application called without a socket: an EngineCall in, answer frames out."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from deepinfer.engine_shim.frames import AnswerFrame, Body, End, EngineCall, Failure, Head, cut
from deepinfer.engine_shim.served_engine import AsgiApp, Message

Put = Callable[[AnswerFrame], Awaitable[None]]
"""Sends a frame to the caller; waits while the caller reads too slowly."""


class AsgiExchange:
    """One request and its answer."""

    def __init__(self, stream: int, call: EngineCall, put: Put) -> None:
        self._stream = stream
        self._call = call
        self._put = put
        self._body_given = False
        self._head: Head | None = None
        self._head_sent = False
        self._ended = False
        self._disconnected = asyncio.Event()

    async def run(self, app: AsgiApp) -> None:
        """Whatever the application raises is the caller's to report."""
        try:
            await app(self._scope(), self._receive, self._send)
        except asyncio.CancelledError:
            self._disconnected.set()  # for tasks that the application started
            raise
        if not self._ended:
            await self._put(Failure(self._stream, "The engine's application ended before its answer did."))

    def _scope(self) -> dict[str, Any]:
        call = self._call
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
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
        await self._disconnected.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        """The head is held back until there is a body, as servers do: until then an error can still be told."""
        if message["type"] == "http.response.start":
            headers = tuple((bytes(name).lower(), bytes(value)) for name, value in message.get("headers", ()))
            self._head = Head(self._stream, message["status"], headers)
        elif message["type"] == "http.response.body" and not self._ended:
            await self._send_body(message.get("body", b""), more=message.get("more_body", False))

    async def _send_body(self, body: bytes, *, more: bool) -> None:
        if not self._head_sent:
            if self._head is None:
                raise RuntimeError("The application sent a body before its head.")
            self._head_sent = True
            await self._put(self._head)
        for piece in cut(bytes(body)):
            await self._put(Body(self._stream, piece))
        if not more:
            self._ended = True
            self._disconnected.set()
            await self._put(End(self._stream))
