"""In front of everything: who may come in. It looks at a request's head alone; what is refused is never read.

A request goes on with its caller in its scope, by which the gateway knows what may be used. Nothing stands between the
application and the server's own `send`: what a browser must be told goes into the head by the server's default headers.
"""

from __future__ import annotations

from collections.abc import Iterable

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from deepinfer.control_plane.access.caller import ANONYMOUS, NOBODY, SCOPE_KEY, Caller, require
from deepinfer.control_plane.access.key_ring import Digest, KeyRing, digest_shown
from deepinfer.control_plane.access.web_pages import WebPages, allowing, is_preflight, preflight_headers
from deepinfer.control_plane.gateway.asgi import App, Receive, Reply, Scope, Send
from deepinfer.control_plane.gateway.body import model_in_query, request_id
from deepinfer.control_plane.gateway.error_reply import error_reply
from deepinfer.control_plane.gateway.permission import READING, wanted_role
from deepinfer.control_plane.openai_errors import ForeignOrigin, InvalidApiKey
from deepinfer.fleet.config import ServeConfig
from deepinfer.fleet.errors import DeepinferError, InvalidRequest
from deepinfer.fleet.loopback import is_loopback

_READ = frozenset(
    (
        b"host",
        b"authorization",
        b"x-api-key",
        b"api-key",
        b"origin",
        b"sec-fetch-site",
        b"access-control-request-method",
        b"access-control-request-headers",
    )
)


def front_door(app: App, keys: KeyRing, serve: ServeConfig) -> FrontDoor:
    """As it is configured."""
    origins = frozenset(origin.encode() for origin in serve.cors_origins)
    pages = WebPages(origins, not serve.requires_keys, is_loopback(serve.host))
    return FrontDoor(app, keys if serve.requires_keys else None, pages)


class FrontDoor:
    """`keys`: without them everybody is `ANONYMOUS`, who may do anything."""

    def __init__(self, app: App, keys: KeyRing | None = None, pages: WebPages | None = None) -> None:
        self._app = app
        self._keys = keys
        self._pages = pages or WebPages(keyless=keys is None)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            reply = self._looked_at(scope, send)
            if reply is not None:
                await reply.send(send)
                return
        elif scope["type"] != "lifespan":
            return  # nothing else is served
        await self._app(scope, receive, send)

    def key_shown(self, headers: Iterable[tuple[bytes, bytes]]) -> Digest:
        """The digest of the key in a request to an engine's own path; b"" where none is required.

        Raises `DeepinferError` for what may not come in, and for what is not that simple: the application tells.
        """
        sent = _sent(headers)
        if b"origin" in sent:
            raise ForeignOrigin("Its page must be told what it may read.")
        self._pages.refuse(sent, acts=True)
        return Digest(b"") if self._keys is None else digest_shown(_secret(sent))

    def caller(self, digest: Digest) -> Caller:
        """Whose key that is, now. Raises as `KeyRing.caller`."""
        return ANONYMOUS if self._keys is None else self._keys.caller(digest)

    def _looked_at(self, scope: Scope, send: Send) -> Reply | None:
        """None: it may go on."""
        try:
            return self._admitted(scope, send)
        except DeepinferError as error:
            return error_reply(error, ((b"x-request-id", request_id(scope)),), scope["path"])

    def _admitted(self, scope: Scope, send: Send) -> Reply | None:
        method, path = scope["method"], scope["path"]
        sent = _sent(scope["headers"])
        asks_engine = model_in_query(scope["query_string"]) is not None
        self._pages.refuse(sent, acts=asks_engine or method not in READING)
        origin = sent.get(b"origin")
        if origin is not None and self._pages.allows(origin):
            _tell(send, origin)
        if is_preflight(method, sent):
            if not self._pages.allows(origin):
                raise ForeignOrigin("Pages of that origin may not use this server; see cors_origins in [serve].")
            return Reply(200, b"", preflight_headers(sent))
        scope[SCOPE_KEY] = self._caller(method, path, sent, asks_engine=asks_engine)
        return None

    def _caller(self, method: str, path: str, sent: dict[bytes, bytes], *, asks_engine: bool) -> Caller:
        if self._keys is None:
            return ANONYMOUS
        role = wanted_role(method, path, asks_engine=asks_engine)
        if role is None:
            return NOBODY
        caller = self._keys.caller(digest_shown(_secret(sent)))
        require(role, caller)
        return caller


def _sent(headers: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """The headers that are looked at here; none may come twice, for others might take the other one."""
    sent: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in _READ:
            if name in sent:
                raise InvalidRequest(f"The header {name.decode()} is there twice; send it once.")
            sent[name] = value
    return sent


def _secret(sent: dict[bytes, bytes]) -> bytes:
    """As OpenAI's clients send it, Anthropic's, or Azure's."""
    authorization = sent.get(b"authorization", b"")
    if authorization[:7].lower() == b"bearer ":
        return authorization[7:].strip()
    secret = sent.get(b"x-api-key") or sent.get(b"api-key")
    if not secret:
        raise InvalidApiKey("An API key is needed here; send it as `Authorization: Bearer KEY`.")
    return secret


def _tell(send: Send, origin: bytes) -> None:
    """Whatever answers, a page of that origin may read it."""
    cycle = getattr(send, "__self__", None)
    if not isinstance(cycle, RequestResponseCycle):
        raise TypeError("The gateway runs on uvicorn's httptools protocol, with nothing in between.")
    cycle.default_headers = [*cycle.default_headers, *allowing(origin)]
