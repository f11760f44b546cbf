"""The body of an answer on its way to its client.

A piece of a streamed body goes into the connection's buffer at once, with no task and no coroutine for it; `drained`
holds back what fills the buffer. A client that takes nothing of it is cut off in time (client_connection.py).
"""

from __future__ import annotations

from collections.abc import Callable

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from deepinfer.control_plane.gateway.asgi import Send


class ClientStream:
    """Of uvicorn's own request cycle, which `send` belongs to; begun when the answer's head was sent.

    `streamed` hears of each piece.
    """

    def __init__(self, send: Send, streamed: Callable[[bytes], None]) -> None:
        cycle = getattr(send, "__self__", None)
        if not isinstance(cycle, RequestResponseCycle):
            raise TypeError("The gateway runs on uvicorn's httptools protocol, with nothing in between.")
        self._cycle = cycle
        self._send = send
        self._streamed = streamed

    @property
    def is_chunked(self) -> bool:
        """Whether `write` may be used: the body's length is not known and there is a body."""
        return self._cycle.chunked_encoding is True

    def write(self, piece: bytes) -> None:
        cycle = self._cycle
        if piece and not cycle.disconnected:
            cycle.transport.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            self._streamed(piece)

    async def send(self, piece: bytes, *, more: bool) -> None:
        """As the server does it, which checks the length that was promised."""
        await self.drained()
        if piece:
            self._streamed(piece)
        await self._send({"type": "http.response.body", "body": piece, "more_body": more})

    async def drained(self) -> None:
        """Returns when the client has taken most of what waits for it, or is gone."""
        cycle = self._cycle
        while cycle.flow.write_paused and not cycle.disconnected:
            await cycle.flow.drain()
