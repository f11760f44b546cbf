"""HTTP/1.1 as uvicorn speaks it, with the limits, deadlines and refusals that it lacks.

A refusal is an answer in OpenAI's shape and the connection's end, for nobody knows where on it a next request would
begin. A request sent before the last one was answered is not answered: its client gets the one it waits for, is closed,
and may send the other again, as HTTP foresees.
"""

from __future__ import annotations

import asyncio
from enum import Enum, auto
from typing import Any, Final

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from deepinfer.control_plane.gateway.connections import Connections
from deepinfer.control_plane.gateway.error_reply import error_reply
from deepinfer.control_plane.gateway.request_head import head_too_large, too_large
from deepinfer.control_plane.openai_errors import NotHttp, RequestTooSlow
from deepinfer.fleet.errors import DeepinferError

BEING_REFUSED: Final = 100
"""Connections. More of them are closed without a word."""
KEEP_ALIVE_SECONDS: Final = 5.0
"""How long a connection may wait for its next request."""
SLOWEST_BODY: Final = 1024
"""Bytes a second, on the whole."""
FRAMING: Final = 8
"""A chunked body may be so many times its size on the wire: one that comes byte by byte is."""
LAST_SECONDS: Final = 2.0
"""For a client to read why it was refused, and to close. Closed by us, what it still sends would reset that away."""


class _Reading(Enum):
    HEAD = auto()
    BODY = auto()
    NOTHING = auto()  # a request is being answered, or the next one waited for
    NO_MORE = auto()  # a request is being answered, and the connection ends with it
    REFUSED = auto()  # all was said, what comes is thrown away


class LimitedConnection(HttpToolsProtocol):
    """`look` keeps its deadlines. What comes of a request is told to the methods that are not here."""

    def __init__(self, connections: Connections, **server: Any) -> None:
        super().__init__(**server)
        self.limits, self.cork = connections.limits, connections.cork
        self.stays = True  # after the answer
        self._connections = connections
        self._length: bytes | None = None  # of the body, as it is told
        self._reading = _Reading.HEAD
        self._since = 0.0  # it reads that, or when the last byte of a body came, or when it fell idle
        self._taken = 0  # bytes off the wire meanwhile
        self._body_begun = 0.0
        self._body_bytes = 0
        self._not_parsed = 0  # bytes of a body that the parser does not take for one
        self._unsent, self._unsent_since = 0, 0.0

    @property
    def is_busy(self) -> bool:
        """A request of which the head is there is not answered yet."""
        raise NotImplementedError

    def head_came(self, length: bytes | None, taken: int) -> None:
        """`length` of the body, where it is told; `taken` bytes came since the last request, of the body too perhaps.

        Raises `DeepinferError` for what is to be refused.
        """
        raise NotImplementedError

    def body_came(self, piece: bytes) -> None:
        """Of it."""
        raise NotImplementedError

    def body_ended(self) -> None:
        """It is whole."""
        raise NotImplementedError

    def answers_first(self) -> bool:
        """Nothing more will be read. Whether there is an answer to come, the connection's last; else it is given up."""
        raise NotImplementedError

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._since = self.loop.time()
        refusal = self._connections.enter(self, self.client[0] if self.client else "")
        if refusal is not None and self._connections.refused > BEING_REFUSED:
            transport.abort()
        elif refusal is not None:
            self._refuse(refusal)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.leave(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._taken += len(data)
        if self._reading is _Reading.BODY:
            self._since = self.loop.time()
        elif self._reading in (_Reading.NO_MORE, _Reading.REFUSED):
            return
        try:
            if self._not_parsed:
                data = self._body_of(data)
            self.parser.feed_data(data)
            self._check_taken()
        except httptools.HttpParserUpgrade as upgrade:
            # What the client would rather speak is not spoken here, so it is answered in HTTP/1.1.
            self._taken = 0
            self.data_received(data[int(upgrade.args[0]) :])
        except httptools.HttpParserError as error:
            cause = error.__context__
            self._refuse(cause if isinstance(cause, DeepinferError) else NotHttp(f"This is no proper HTTP: {error}."))
        except DeepinferError as error:
            self._refuse(error)

    def on_message_begin(self) -> None:
        self.url, self.headers, self._length, self.expect_100_continue = b"", [], None, False
        if self._reading is not _Reading.HEAD:
            self._reading = _Reading.HEAD
            self._since = self.loop.time()

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name == b"content-length":
            self._length = value
        else:
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        if self.is_busy:
            raise NotHttp("The last request on this connection is not answered yet; use another.")
        length, taken = self._length, self._taken
        if length is not None and int(length) > self.limits.max_body_bytes:
            raise too_large(self.limits)
        self._reading = _Reading.BODY
        self._taken = self._body_bytes = 0
        self._since = self._body_begun = self.loop.time()
        self.head_came(length, taken)
        self.headers = []  # for trailers: what they say comes too late

    def without_parser(self) -> None:
        """With "Upgrade" it takes a request to end with its head. Some clients send it with every first one."""
        if any(name == b"transfer-encoding" for name, _ in self.headers):
            raise NotHttp("A chunked request cannot ask for another protocol; send it without Upgrade.")
        self._not_parsed = int(self._length or 0)

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        if self._body_bytes > self.limits.max_body_bytes:
            raise too_large(self.limits)
        self.body_came(body)

    def on_message_complete(self) -> None:
        if not self._not_parsed:
            self._reading = _Reading.NOTHING
            self._taken = 0
            self.body_ended()

    def on_response_complete(self) -> None:
        """As uvicorn has it, but without a timer, and who still sends the answered request is not listened to."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self._since = self.loop.time()
        if self._reading is _Reading.NOTHING:
            self.flow.resume_reading()
        else:
            self._end()

    def look(self, now: float) -> None:
        """Ends what takes too long."""
        self._look_at_writing(now)
        if self.transport.is_closing():
            return
        limits, waited = self.limits, now - self._since
        match self._reading:
            case _Reading.HEAD if waited > limits.header_seconds:
                if self._taken:
                    self._refuse(RequestTooSlow(f"The headers were not whole after {limits.header_seconds:g} seconds."))
                else:
                    self.transport.close()
            case _Reading.BODY if self.flow.read_paused:
                self._since = now
            case _Reading.BODY if waited > limits.body_seconds:
                self._refuse(RequestTooSlow(f"Nothing of the body came for {limits.body_seconds:g} seconds."))
            case _Reading.BODY if now - self._body_begun > limits.body_seconds + self._body_bytes / SLOWEST_BODY:
                self._refuse(RequestTooSlow(f"The body comes at less than {SLOWEST_BODY} bytes a second."))
            case _Reading.NOTHING if not self.is_busy and waited > KEEP_ALIVE_SECONDS:
                self.transport.close()
            case _Reading.REFUSED if waited > LAST_SECONDS:
                self.transport.abort()

    def _look_at_writing(self, now: float) -> None:
        """Who takes nothing of what waits for it is cut off. Where much waits, nothing is added to it."""
        unsent = self.transport.get_write_buffer_size()
        if unsent != self._unsent:
            self._unsent, self._unsent_since = unsent, now
        elif unsent and now - self._unsent_since > self.limits.write_seconds:
            self.transport.abort()

    def _check_taken(self) -> None:
        """What neither was a head in time nor counts as a body, such as a chunk's extensions."""
        taken = self._taken
        if taken > self.limits.max_header_bytes:
            if self._reading is not _Reading.BODY:
                raise head_too_large(self.limits)
            if taken > self.limits.max_header_bytes + FRAMING * self._body_bytes:
                raise NotHttp("The body's chunks are framed by far more than they hold.")

    def _body_of(self, data: bytes) -> bytes:
        """What comes after it."""
        body, rest = data[: self._not_parsed], data[self._not_parsed :]
        self._not_parsed -= len(body)
        self.on_body(body)
        if not self._not_parsed:
            self.on_message_complete()
        return rest

    def _refuse(self, error: DeepinferError) -> None:
        """What was asked before is answered; of what is coming nothing is read any more."""
        if self.answers_first():
            self._reading = _Reading.NO_MORE
        elif not self.transport.is_closing():
            self.cork.flush()
            self.transport.write(_answer_of(error))
            self._end()

    def _end(self) -> None:
        self._reading = _Reading.REFUSED
        self._since = self.loop.time()
        self.flow.resume_reading()
        self.cork.flush()
        self.transport.write_eof()


def _answer_of(error: DeepinferError) -> bytes:
    reply = error_reply(error)
    own = b"".join(b"%b: %b\r\n" % header for header in reply.headers)
    return b"%bcontent-type: %b\r\ncontent-length: %d\r\n%bconnection: close\r\n\r\n%b" % (
        STATUS_LINE[reply.status],
        reply.content_type,
        len(reply.body),
        own,
        reply.body,
    )
