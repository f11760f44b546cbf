"""HTTP/1.1 to an engine's own server: a call to bytes, and what comes back to the parts of an answer."""

from __future__ import annotations

from functools import lru_cache
from typing import Final
from urllib.parse import quote

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from deepinfer.engine_shim.frames import HOP_BY_HOP, EngineCall, Head, Headers

MOST_WITHOUT_BODY: Final = 64 << 10
"""Bytes of heads, trailers and the like that may come with nothing of a body between them."""
_OURS: Final = HOP_BY_HOP | {b"host", b"content-length", b"authorization"}
_IN_PATHS: Final = "/:@!$&'()*+,;=-._~"


def request_head(call: EngineCall, own: Headers) -> bytes:
    """All of a request that comes before its body."""
    lines = [_first_line(call.method, call.path, call.query)]
    lines += [b"%b: %b" % header for header in own]
    lines += [b"%b: %b" % header for header in call.headers if header[0] not in _OURS]
    lines.append(b"content-length: %d\r\n\r\n" % len(call.body))
    return b"\r\n".join(lines)


@lru_cache(maxsize=64)
def _first_line(method: str, path: str, query: bytes) -> bytes:
    """The path has no escapes any more here."""
    target = f"{method} {quote(path, _IN_PATHS)}".encode()
    return b"%b?%b HTTP/1.1" % (target, query) if query else target + b" HTTP/1.1"


class AnswerReader:
    """The answers of one connection, one after the other; `begin` before each.

    `head` is there when it has come. The answer is `over` when all of it has, or when it cannot be read on: then
    `fault` says why.
    """

    def __init__(self) -> None:
        self.head: Head | None = None
        self.over = False
        self.fault = ""
        self.keeps_alive = False  # the connection may be used again after this answer
        self._pieces: list[bytes] = []
        self.on_body = self._pieces.append  # the parser calls it for each piece: no Python runs for that
        self._has_no_body = False
        self._ends_with_connection = False
        self._is_interim = False
        self._headers: list[tuple[bytes, bytes]] = []
        self._without_body = 0
        self._parser = HttpResponseParser(self)

    def begin(self, method: str) -> None:
        self.head, self.over, self.fault, self.keeps_alive = None, False, "", False
        self._has_no_body = method == "HEAD"
        self._ends_with_connection = False
        self._without_body = 0

    def read(self, data: bytes) -> bytes:
        """What came of the body, as one piece."""
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            self._cannot_go_on(error)
        pieces = self._pieces
        if not pieces:
            self._count(len(data))
            return b""
        self._without_body = 0
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        return b"" if self._has_no_body else body

    def is_whole_at_end(self) -> bool:
        """Whether the connection's end is that of the answer too."""
        return self._ends_with_connection and not self.fault

    def on_message_begin(self) -> None:
        self._headers = []
        if self.over:
            raise ValueError("nobody asked for it")

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.head is None:  # else it is a trailer: those are for this hop
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        self._is_interim = status < 200
        if not self._is_interim:
            headers = self._headers
            kept = [header for header in headers if header[0] not in HOP_BY_HOP]
            if len(kept) < len(headers) and (named := _named_by_connection(headers)):
                kept = [header for header in kept if header[0] not in named]
            self.head = Head(0, status, tuple(kept))
            self._ends_with_connection = not _tell_the_end(headers)
            self.over = self._has_no_body

    def on_message_complete(self) -> None:
        if not self._is_interim:
            self.over = True
            self.keeps_alive = self._parser.should_keep_alive()

    def _cannot_go_on(self, error: Exception) -> None:
        self.keeps_alive = False
        if not self.over:  # what follows a whole answer costs the connection only
            upgrade = isinstance(error, HttpParserUpgrade)
            why = "it wants another protocol" if upgrade else str(error).rstrip(".")
            self.over, self.fault = True, f"what it sent is no answer in HTTP/1.1 ({why})"

    def _count(self, size: int) -> None:
        self._without_body += size
        if self._without_body > MOST_WITHOUT_BODY and not self.over:
            self.over, self.fault = True, f"it sent {self._without_body} bytes and no body among them"


def _tell_the_end(headers: list[tuple[bytes, bytes]]) -> bool:
    for name, value in headers:
        if name == b"content-length" or (name == b"transfer-encoding" and value.strip().lower().endswith(b"chunked")):
            return True
    return False


def _named_by_connection(headers: list[tuple[bytes, bytes]]) -> frozenset[bytes]:
    """Headers that the server declared to be for this hop only."""
    return frozenset(
        token.strip().lower() for name, value in headers if name == b"connection" for token in value.split(b",")
    )
