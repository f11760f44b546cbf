"""A real connection for calls over loopback: an application behind a shim's end, and a caller's end or bare frames."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

from deepinfer.engine_shim.call_connection import CallConnection
from deepinfer.engine_shim.call_stream import CallStream, connected
from deepinfer.engine_shim.call_wire import FrameReader, answer_from_bytes, call_to_bytes
from deepinfer.engine_shim.frames import AnswerFrame, CallFrame
from deepinfer.engine_shim.served_engine import AsgiApp

KEY = b"the key"


class CountingTransport:
    """A connection's transport, whose writes are counted."""

    def __init__(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.writes = 0

    def write(self, data: bytes) -> None:
        self.writes += 1
        self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class CountedConnection(CallConnection):
    """`counted` is its transport."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.counted = CountingTransport(transport)
        super().connection_made(cast(asyncio.BaseTransport, self.counted))


@dataclass
class ServedApp:
    """Where it is served, and the shim's end of each connection."""

    endpoint: str = ""
    connections: list[CountedConnection] = field(default_factory=list)

    @property
    def writes(self) -> int:
        return sum(connection.counted.writes for connection in self.connections)


@asynccontextmanager
async def served(app: AsgiApp) -> AsyncIterator[ServedApp]:
    serving = ServedApp()

    def accepted() -> CountedConnection:
        serving.connections.append(CountedConnection(app, KEY))
        return serving.connections[-1]

    server = await asyncio.get_running_loop().create_server(accepted, "127.0.0.1", 0)
    serving.endpoint = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield serving
    finally:
        server.close()
        for connection in serving.connections:
            connection.close()
        await asyncio.gather(*(task for c in serving.connections for task in c.tasks), return_exceptions=True)


@asynccontextmanager
async def caller_of(serving: ServedApp) -> AsyncIterator[CallStream]:
    stream = await connected(serving.endpoint, KEY, serving.endpoint)
    try:
        yield stream
    finally:
        stream.close("the test is over")


class BareCaller:
    """Sends and sees frames as they are, without our client, which hides credit and cuts."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._frames = FrameReader()
        self._came: list[AnswerFrame] = []

    def send(self, *frames: CallFrame | bytes) -> None:
        for frame in frames:
            self._writer.write(frame if isinstance(frame, bytes) else call_to_bytes(frame))

    async def frame(self) -> AnswerFrame | None:
        """The next one; None when the connection has ended."""
        while not self._came:
            data = await self._reader.read(1 << 20)
            if not data:
                return None
            self._came += [answer_from_bytes(*raw) for raw in self._frames.read(data)]
        return self._came.pop(0)

    async def frames(self, count: int) -> list[AnswerFrame | None]:
        return [await self.frame() for _ in range(count)]


@asynccontextmanager
async def bare_caller(endpoint: str) -> AsyncIterator[BareCaller]:
    host, _, port = endpoint.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield BareCaller(reader, writer)
    finally:
        writer.transport.abort()
