"""One client's connection: what comes on it becomes an exchange (`exchange.py`), or a task of the application.

A request that is refused by `limited_connection.py` never reaches the application; if its body was still coming, the
application sees a client that hung up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

import httptools
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from deepinfer.control_plane.gateway.asgi import App, Scope
from deepinfer.control_plane.gateway.body import LARGE
from deepinfer.control_plane.gateway.client_stream import answer_head
from deepinfer.control_plane.gateway.connections import Connections
from deepinfer.control_plane.gateway.limited_connection import LimitedConnection
from deepinfer.control_plane.gateway.relayed_paths import RELAYED_PATHS
from deepinfer.control_plane.gateway.request_head import check_head, check_head_size

if TYPE_CHECKING:
    from deepinfer.control_plane.access.caller import Caller
    from deepinfer.control_plane.gateway.exchange import Exchange
    from deepinfer.control_plane.gateway.known_head import KnownHead
    from deepinfer.control_plane.gateway.shortcut import Shortcut

CONNECTION: Final = "deepinfer.connection"
"""In a request's scope: the connection it came on."""
_PATHS: Final = {path.encode(): path for path in RELAYED_PATHS}


class ClientConnection(LimitedConnection):
    """`exchange` is what answers the request that came last, if no task does."""

    scope: Scope  # type: ignore[assignment]

    def __init__(self, connections: Connections, shortcut: Shortcut | None, **server: Any) -> None:
        super().__init__(connections, **server)
        self.exchange: Exchange | None = None
        self.when_gone: Callable[[], None] | None = None  # called when the client is, before its task's answer is whole
        self._shortcut = shortcut
        self._known: KnownHead | None = None  # of the last request, if it may be an exchange
        self._caller: Caller | None = None  # of a request that is to be one, whose body is coming:
        self._body: list[bytes] = []
        self._same: dict[str, Any] = {}  # of all its requests' scopes

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._same = {
            "type": "http",
            "asgi": {"version": self.asgi_version, "spec_version": "2.3"},
            "scheme": self.scheme,
            "server": self.server,
            "client": self.client,
            "root_path": "",
        }

    def connection_lost(self, exc: Exception | None) -> None:
        self._begin_anyway()
        super().connection_lost(exc)
        if self.exchange is not None:
            self.exchange.gone()
        if self.when_gone is not None and self.is_gone:
            self.when_gone()

    @property
    def is_gone(self) -> bool:
        """The client hung up before its answer's end."""
        return self.cycle is not None and self.cycle.disconnected

    @property
    def is_busy(self) -> bool:
        if self.exchange is not None or self._caller is not None:
            return True
        return self.cycle is not None and not self.cycle.response_complete

    def head_came(self, length: bytes | None, taken: int) -> None:
        version, known = self.parser.get_http_version(), self._known
        if known is None or self.headers != known.headers or version != "1.1":
            known = self._known = self._checked(version)
        if length is not None:
            self.headers.append((b"content-length", length))
        if taken > self.limits.max_header_bytes:
            check_head_size(self.url, self.headers, self.limits)
        self._tell_scope(version)
        if known is None or not self._may_be_exchange(known, length):
            self.start(self.app, self.scope)

    def body_came(self, piece: bytes) -> None:
        if self._caller is None:
            super(LimitedConnection, self).on_body(piece)
        else:
            self._body.append(piece)

    def body_ended(self) -> None:
        if self._caller is None:
            super(LimitedConnection, self).on_message_complete()
        else:
            self._exchange(self._caller)

    def answers_first(self) -> bool:
        self._begin_anyway()
        cycle = self.cycle
        if self.exchange is not None:
            self.stays = False
            return True
        if cycle is None or cycle.response_complete:
            return False
        if not cycle.more_body:
            cycle.keep_alive = False
            return True
        cycle.disconnected, cycle.waiting_for_100_continue = True, False
        cycle.message_event.set()
        if cycle.response_started:
            self.transport.abort()
        return False

    def start(self, app: App, scope: Scope, body: bytes = b"", *, whole: bool = False) -> None:
        """A task serves the request from now on. `body` is what has come of it, all if it is `whole`."""
        scope["state"] = self.app_state.copy()
        cycle = self.cycle = RequestResponseCycle(
            scope=scope,  # type: ignore[arg-type]
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=self.stays,
            on_response=self.on_response_complete,
        )
        cycle.body += body
        cycle.more_body = not whole
        if body or whole:
            cycle.message_event.set()
        self._start_asgi_task(cycle, app)  # type: ignore[arg-type]

    def answer(self, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> None:
        """All of an exchange's answer, with a 200. Raises `EngineFailed` for headers that are none; nothing is sent."""
        own = (*self.server_state.default_headers, *headers)
        data = answer_head(200, own, closes=not self.stays) + body
        self.cork.write(self.transport, data)
        if not self.stays:
            self.cork.flush()
            self.transport.close()
        self.on_response_complete()

    def shutdown(self) -> None:
        """A server that ends waits for tasks, and for nothing else."""
        self.cork.flush()
        self._begin_anyway()
        if self.exchange is not None:
            self.exchange.hand_over()
        super().shutdown()

    def _tell_scope(self, version: str) -> None:
        path, raw_path, query = _PATHS.get(self.url), self.url, b""
        if path is None:
            parsed = httptools.parse_url(self.url)
            raw_path, query = parsed.path, parsed.query or b""
            path = unquote(raw_path.decode("ascii"))
        self.scope = scope = self._same.copy()
        scope["http_version"] = version
        scope["method"] = self.parser.get_method().decode("ascii")
        scope["path"], scope["raw_path"], scope["query_string"] = path, raw_path, query
        scope["headers"] = self.headers
        scope[CONNECTION] = self

    def _checked(self, version: str) -> KnownHead | None:
        """What may be said again and need not be looked at then: most clients do nothing else."""
        check_head(version, self.headers, self.limits)
        self.stays = version != "1.0" and self.parser.should_keep_alive()
        self.expect_100_continue = any(
            name == b"expect" and value.lower() == b"100-continue" for name, value in self.headers
        )
        if self.parser.should_upgrade():
            self.without_parser()
            return None
        plain = version == "1.1" and self.stays and not self.expect_100_continue
        if self._shortcut is None or not plain or self.url not in _PATHS:
            return None
        return self._shortcut.read(self.headers.copy())

    def _may_be_exchange(self, known: KnownHead, length: bytes | None) -> bool:
        if length is None or int(length) > LARGE or self.url not in _PATHS or self.scope["method"] != "POST":
            return False
        self._caller = self._shortcut.caller(known) if self._shortcut is not None else None
        return self._caller is not None

    def _begin_anyway(self) -> None:
        """What ends before its body was whole is seen as a request too, by the application."""
        if self._caller is not None:
            self.start(self.app, self.scope, self._taken_body())

    def _taken_body(self) -> bytes:
        pieces, self._body, self._caller = self._body, [], None
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _exchange(self, caller: Caller) -> None:
        shortcut, known, body = self._shortcut, self._known, self._taken_body()
        exchange = None if shortcut is None or known is None else shortcut.ask(self, known, caller, body)
        if exchange is None:
            self.start(self.app, self.scope, body, whole=True)
