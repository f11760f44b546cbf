"""From an HTTP request to the call an engine gets: its bytes untouched, and only what routing needs read from them.

The model is named by `?model=`, else by the "model" of a multipart form, else by that of a JSON body. JSON must be
valid as a whole, so that an engine never sees what this gateway could not read, and say nothing that body_rules.py
refuses; what else its fields mean is the engine's to judge. Any other content type is taken for JSON, since `curl -d`
says it sends a form; only bytes whose model `?model=` names may be none.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from itertools import count
from secrets import token_hex
from typing import Any, Final
from urllib.parse import parse_qs

import msgspec
from msgspec import Struct

from deepinfer.control_plane.gateway.asgi import Headers, Receive, Scope
from deepinfer.control_plane.gateway.body_rules import check_said
from deepinfer.control_plane.gateway.multipart import is_form, model_in_form
from deepinfer.control_plane.gateway.plain_chat import PlainChat, plain_chat
from deepinfer.engine_shim.frames import HOP_BY_HOP, EngineCall
from deepinfer.fleet.errors import InvalidRequest

LARGE: Final = 256 << 10
"""Bytes of JSON. Reading more than this would hold up the streams of everybody else."""
# What proves who the client is to this gateway is nobody else's business.
CREDENTIALS = frozenset((b"authorization", b"proxy-authorization", b"cookie", b"api-key", b"x-api-key"))
# An engine with several data-parallel ranks obeys it; which one is not the client's to say.
ROUTES_INSIDE = frozenset((b"x-data-parallel-rank",))
NOT_PASSED_ON = (
    HOP_BY_HOP | CREDENTIALS | ROUTES_INSIDE | {b"host", b"origin", b"content-type", b"content-length", b"x-request-id"}
)
_TIMEOUTS = frozenset((b"x-request-timeout", b"x-stainless-read-timeout"))
_SESSIONS = frozenset((b"x-session-id", b"x-user-id"))
_LONGEST_SESSION: Final = 256
EXPLAIN: Final = b"x-deepinfer-explain"
"""With any value but 0 or false, the answer's headers say why its replica was chosen."""
_SECONDS = re.compile(rb"[0-9]{1,7}(\.[0-9]{1,6})?")
_OURS = token_hex(10).encode()  # of this process: ids of ours are this and a number
_numbers = count()
_KEPT_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")


class ClientGone(Exception):
    """The client hung up before its request was whole."""


class Wishes(Struct, frozen=True):
    """What a JSON body says besides its model that this gateway goes by. Any value may be there: engines judge them."""

    most_tokens: object = None  # of one choice
    choices: object = None
    priority: object = None
    stream: object = None
    session: object = None  # what its requests have in common
    salt: object = None  # of its prompt's KV


NO_WISHES = Wishes()
_decoder = msgspec.json.Decoder(dict[str, Any])
_JSON: Final = b"application/json"
_NO_JSON = (b"audio/", b"image/", b"video/", b"application/octet-stream")


class ModelRequest(Struct, frozen=True):
    """A request that names a model. `patience`: seconds after which its client wants no answer any more; 0: unknown."""

    model: str
    call: EngineCall
    wishes: Wishes = NO_WISHES
    patience: float = 0.0
    session: str = ""
    explains: bool = False  # its client wants to know why its replica was chosen
    said: PlainChat | dict[str, Any] | None = None  # by its JSON body


class Sent(Struct, frozen=True):
    """What a request's headers say here, and those of them that go on."""

    content_type: bytes
    patience: float
    kept: Headers
    session: str = ""
    explains: bool = False


def request_id(scope: Scope) -> bytes:
    """The client's own X-Request-Id if it is a plain one, else a new one."""
    return own_id(scope["headers"]) or new_id()


def own_id(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The client's; b"" if it sent none that is plain."""
    return next((value for name, value in headers if name == b"x-request-id" and _KEPT_ID.fullmatch(value)), b"")


def new_id() -> bytes:
    return b"%b%012x" % (_OURS, next(_numbers))


async def read_request(scope: Scope, receive: Receive, request_id: bytes, domains: frozenset[str]) -> ModelRequest:
    """Raises `InvalidRequest` naming what is wrong and where, and `ClientGone`. Engines may fetch from `domains`."""
    body = await _read_body(receive)
    sent, model = read_headers(scope["headers"]), model_in_query(scope["query_string"])
    if is_form(sent.content_type):
        named = model_in_form(body, sent.content_type, domains)
        model = model or _named(named, "form")
    elif model is None or (body and not sent.content_type.startswith(_NO_JSON)):
        fields = read_json(body, domains) if len(body) <= LARGE else await asyncio.to_thread(read_json, body, domains)
        return _json_request(scope, sent, body, fields, request_id)
    return _model_request(_call(scope, sent, body, request_id, sent.content_type), NO_WISHES, sent, model)


def json_request(scope: Scope, sent: Sent, body: bytes, request_id: bytes, domains: frozenset[str]) -> ModelRequest:
    """The same of a body that is there, not larger than `LARGE` and no form, without a query. `InvalidRequest`."""
    chat = plain_chat(body)
    if chat is not None:
        session = chat.prompt_cache_key or chat.user
        wishes = Wishes(chat.max_tokens or chat.max_completion_tokens, chat.n, stream=chat.stream, session=session)
        return _model_request(_call(scope, sent, body, request_id, _JSON), wishes, sent, chat.model, chat)
    return _json_request(scope, sent, body, read_json(body, domains), request_id)


def model_in_query(query: bytes) -> str | None:
    """What `?model=` says, if it is there."""
    if b"model=" not in query:
        return None
    named = parse_qs(query.decode("latin-1"), encoding="utf-8", errors="replace").get("model")
    return named[-1] if named else None


def read_json(body: bytes, domains: frozenset[str]) -> dict[str, Any]:
    """A body that is broken anywhere is refused, and one that says what body_rules.py refuses."""
    if not body:
        raise InvalidRequest("The body is empty; send a JSON object with a 'model', or name it with ?model=NAME.")
    try:
        fields = _decoder.decode(body.decode())
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"The body is not valid UTF-8 (byte {error.start}).") from error
    except RecursionError as error:
        raise InvalidRequest("The body's JSON is nested too deeply.") from error
    except msgspec.ValidationError as error:
        raise _wrong_value(str(error)) from error
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"The body is not valid JSON: {_fault(str(error))}.") from error
    check_said(fields, domains)
    return fields


def _named(model: object, holder: str) -> str:
    if model is None:
        raise InvalidRequest(f"The {holder} has no 'model'; GET /v1/models lists what is served.", "model")
    if not isinstance(model, str):
        raise InvalidRequest("'model' must be a string.", "model")
    return model


def _wrong_value(fault: str) -> InvalidRequest:
    if "out of range" in fault:
        return InvalidRequest("The body has a number that is out of range.")
    return InvalidRequest(f"The body must be a JSON object: {fault.lower()}.")


def _fault(fault: str) -> str:
    return fault.removeprefix("JSON is malformed: ").replace("Input data was truncated", "it ends too early")


def _wishes(fields: dict[str, Any]) -> Wishes:
    most = fields.get("max_tokens") or fields.get("max_completion_tokens") or fields.get("max_output_tokens")
    session = fields.get("prompt_cache_key") or fields.get("user")
    return Wishes(
        most, fields.get("n"), fields.get("priority"), fields.get("stream"), session, fields.get("cache_salt")
    )


def _without_priority(body: bytes) -> bytes:
    """This gateway has put the request in its place; an engine without priorities of its own would refuse the field."""
    fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    del fields["priority"]
    return msgspec.json.encode(fields)


async def _read_body(receive: Receive) -> bytes:
    """The server limits its size, and how long it may take (limited_connection.py)."""
    pieces: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        pieces.append(message.get("body", b""))
        if not message.get("more_body"):
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _json_request(scope: Scope, sent: Sent, body: bytes, fields: dict[str, Any], request_id: bytes) -> ModelRequest:
    model = model_in_query(scope["query_string"]) or _named(fields.get("model"), "body")
    wishes = _wishes(fields)
    if wishes.priority is not None:
        body = _without_priority(body)
    # It was seen to be JSON; an engine may insist on being told so.
    return _model_request(_call(scope, sent, body, request_id, _JSON), wishes, sent, model, fields)


def _model_request(
    call: EngineCall, wishes: Wishes, sent: Sent, model: str, said: PlainChat | dict[str, Any] | None = None
) -> ModelRequest:
    named = wishes.session if isinstance(wishes.session, str) else ""
    session = sent.session or named[:_LONGEST_SESSION]
    return ModelRequest(model, call, wishes, sent.patience, session, sent.explains, said)


def _call(scope: Scope, sent: Sent, body: bytes, request_id: bytes, content_type: bytes) -> EngineCall:
    kind = ((b"content-type", content_type),) if content_type else ()
    headers = (*sent.kept, *kind, (b"content-length", b"%d" % len(body)), (b"x-request-id", request_id))
    return EngineCall(scope["method"], scope["path"], scope["query_string"], headers, body)


def read_headers(headers: Iterable[tuple[bytes, bytes]]) -> Sent:
    """Its names are lower case."""
    content_type, patience, kept, named = b"", 0.0, [], b""
    session, explains = b"", False
    for header in headers:
        name, value = header
        if name not in NOT_PASSED_ON:
            kept.append(header)
            if not name.startswith(b"x-"):
                continue
            if name in _TIMEOUTS and not patience and _SECONDS.fullmatch(value):
                patience = float(value)
            elif name in _SESSIONS:
                session = value[:_LONGEST_SESSION]
            elif name == EXPLAIN:
                explains = value not in (b"", b"0", b"false")
        elif name == b"content-type":
            content_type = content_type or value
        elif name == b"connection" and value.lower() not in (b"keep-alive", b"close"):
            named += b"," + value
    if named:  # which the client declared to be for this hop only
        own = frozenset(token.strip().lower() for token in named.split(b","))
        kept = [header for header in kept if header[0] not in own]
    return Sent(content_type, patience, tuple(kept), session.decode("latin-1"), explains)
