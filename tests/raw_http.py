"""What goes over the wire, byte by byte: for clients that no HTTP library would be."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from httptools import HttpResponseParser

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def connection_to(url: str) -> AsyncIterator[Streams]:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
    try:
        yield reader, writer
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def said(reader: asyncio.StreamReader) -> bytes:
    """All until the connection ends."""
    pieces = []
    with suppress(ConnectionError):
        while piece := await reader.read(1 << 16):
            pieces.append(piece)
    return b"".join(pieces)


def answers_in(data: bytes) -> list[tuple[int, bytes]]:
    """Status and body of each whole answer."""
    answers: list[tuple[int, bytes]] = []

    class _Answers:
        body = b""

        def on_body(self, body: bytes) -> None:
            self.body += body

        def on_message_complete(self) -> None:
            answers.append((parser.get_status_code(), self.body))
            self.body = b""

    parser = HttpResponseParser(_Answers())
    parser.feed_data(data)
    return answers
