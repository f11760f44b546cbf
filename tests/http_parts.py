"""Real HTTP servers on loopback as engines have them: uvicorn over an application, or one that a test scripts."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from deepinfer.control_plane.gateway.drain import Drain
from deepinfer.control_plane.gateway.server import Listening, listening
from deepinfer.engine_shim.frames import Headers
from deepinfer.engine_shim.http_upstream import HttpUpstream
from deepinfer.engine_shim.served_engine import AsgiApp, Receive, Scope, Send

Script = Callable[["Conversation"], Awaitable[None]]


@dataclass
class HttpServer:
    """`upstream` calls it; `callers` are the addresses that requests came from."""

    endpoint: str
    upstream: HttpUpstream
    callers: list[Any] = field(default_factory=list)


@asynccontextmanager
async def http_server(app: AsgiApp) -> AsyncIterator[HttpServer]:
    callers: list[Any] = []

    async def noting(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            callers.append(scope["client"])
            await app(scope, receive, send)

    async with listening(noting, "127.0.0.1", 0, Listening(Drain(1))) as port:
        endpoint = f"127.0.0.1:{port}"
        upstream = HttpUpstream(endpoint, "the test")
        try:
            yield HttpServer(endpoint, upstream, callers)
        finally:
            upstream.close("the test is over")


class Conversation:
    """One connection, seen from a scripted server; `number` counts them from 0."""

    def __init__(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.number = number
        self.reader = reader
        self.writer = writer

    async def request(self) -> bytes:
        """All of the next one, as it came."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        return head + await self.reader.readexactly(length)

    async def say(self, *pieces: bytes) -> None:
        """Each in a write of its own."""
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()

    def reset(self) -> None:
        """As the kernel does it for a process that was killed with something unread."""
        connection = self.writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


@asynccontextmanager
async def scripted_server(script: Script) -> AsyncIterator[HttpServer]:
    """`script` runs once for each connection, which ends with it."""
    running: set[asyncio.Task[None]] = set()
    counted = iter(range(1_000_000))

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        running.add(task)
        server.callers.append(writer.get_extra_info("peername"))
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await script(Conversation(next(counted), reader, writer))
        writer.close()
        running.discard(task)

    listener = await asyncio.start_server(converse, "127.0.0.1", 0, limit=64 << 20)
    endpoint = f"127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    server = HttpServer(endpoint, HttpUpstream(endpoint, "the test"))
    try:
        yield server
    finally:
        server.upstream.close("the test is over")
        listener.close()
        for task in running:
            task.cancel()


async def start(send: Send, status: int = 200, headers: Headers = ()) -> None:
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})


async def body(send: Send, data: bytes, *, more: bool = False) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": more})
