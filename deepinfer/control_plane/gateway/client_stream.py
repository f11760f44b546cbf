"""An answer on its way to its client, past the server's own `send`: what is ready together leaves in one write.

A piece goes into the connection's buffer at once, with no task and no coroutine for it; `drained` holds back what fills
the buffer. A client that takes nothing of it is cut off in time (limited_connection.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from deepinfer.control_plane.gateway.asgi import Headers, Send
from deepinfer.fleet.errors import EngineFailed

_WITHOUT_BODY = (204, 304)
_CHUNKED: Headers = ((b"transfer-encoding", b"chunked"),)


class ClientStream:
    """Of uvicorn's own request cycle, which `send` belongs to. `begin` it, `write` pieces, and `end` it.

    `streamed` hears of each piece.
    """

    def __init__(self, send: Send, streamed: Callable[[bytes], None]) -> None:
        cycle = getattr(send, "__self__", None)
        if not isinstance(cycle, RequestResponseCycle):
            raise TypeError("The gateway runs on uvicorn's httptools protocol, with nothing in between.")
        self._cycle = cycle
        self._streamed = streamed
        self._head = b""  # not sent yet: it goes with the first piece
        self._has_body = True

    def begin(self, status: int, headers: Headers) -> None:
        """Raises `EngineFailed` for headers that are none; then nothing has begun."""
        cycle = self._cycle
        length = next((int(value) for name, value in headers if name == b"content-length"), None)
        self._has_body = cycle.scope["method"] != "HEAD" and status not in _WITHOUT_BODY
        is_chunked = self._has_body and length is None
        own = _CHUNKED if is_chunked else ()
        self._head = answer_head(status, (*cycle.default_headers, *headers, *own), closes=not cycle.keep_alive)
        cycle.chunked_encoding = is_chunked
        cycle.expected_content_length = (length or 0) if self._has_body else 0
        cycle.response_started, cycle.waiting_for_100_continue = True, False

    @property
    def is_chunked(self) -> bool:
        """Whether the body's length is not known, and there is a body."""
        return self._cycle.chunked_encoding is True

    def write(self, piece: bytes) -> None:
        """What is more than was promised is dropped, and told at the end."""
        cycle = self._cycle
        if not piece or cycle.disconnected or not self._has_body:
            return
        if cycle.chunked_encoding:
            cycle.transport.write(b"%b%x\r\n%b\r\n" % (self._head, len(piece), piece))
        else:
            cycle.expected_content_length -= len(piece)
            if cycle.expected_content_length < 0:
                return
            cycle.transport.write(self._head + piece)
        self._head = b""
        self._streamed(piece)

    def end(self, last: bytes = b"") -> None:
        """Raises `EngineFailed` for a body that is not as long as was promised."""
        cycle = self._cycle
        if cycle.chunked_encoding and last and not cycle.disconnected:
            self._streamed(last)
            last = b"%x\r\n%b\r\n" % (len(last), last)
        else:
            self.write(last)
            last = b""
        if cycle.disconnected:
            return
        if cycle.expected_content_length:
            raise EngineFailed("The engine's answer is not as long as its Content-Length says.")
        rest = b"%b%b%b" % (self._head, last, b"0\r\n\r\n" if cycle.chunked_encoding else b"")
        if rest:
            cycle.transport.write(rest)
        self._head = b""
        cycle.response_complete = True
        cycle.message_event.set()
        if not cycle.keep_alive:
            cycle.transport.close()
        cycle.on_response()

    async def drained(self) -> None:
        """Returns when the client has taken most of what waits for it, or is gone."""
        cycle = self._cycle
        while cycle.flow.write_paused and not cycle.disconnected:
            await cycle.flow.drain()


def answer_head(status: int, headers: Iterable[tuple[bytes, bytes]], *, closes: bool) -> bytes:
    """All of an answer that comes before its body. Raises `EngineFailed` for headers that are none."""
    lines = [STATUS_LINE[status], *[b"%b: %b\r\n" % header for header in headers]]
    if closes:
        lines.append(b"connection: close\r\n")
    head = b"".join(lines)
    if head.count(b"\n") != len(lines) or head.count(b"\r") != len(lines) or b"\0" in head:
        raise EngineFailed("The engine's answer has a header that is none.")
    return head + b"\r\n"
