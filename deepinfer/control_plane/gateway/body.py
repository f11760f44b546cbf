"""From an HTTP request to the call an engine gets: its bytes untouched, and only what routing needs read from them.

The model is named by `?model=`, and then nothing else is read; else by the "model" of a multipart form; else by that of
a JSON body. That must be valid as a whole, so that an engine never sees what this gateway could not read; what its
fields mean is the engine's to judge. Any other content type is taken for JSON: `curl -d` says it sends a form.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from secrets import token_hex
from typing import Any
from urllib.parse import parse_qs

import msgspec

from deepinfer.control_plane.gateway.asgi import Headers, Receive, Scope
from deepinfer.control_plane.gateway.multipart import is_form, model_in_form
from deepinfer.control_plane.openai_errors import BodyTooLarge
from deepinfer.engine_shim.frames import HOP_BY_HOP, EngineCall
from deepinfer.fleet.errors import InvalidRequest

BODY_LIMIT = 16 << 20
# What proves who the client is to this gateway is nobody else's business.
CREDENTIALS = frozenset((b"authorization", b"proxy-authorization", b"cookie", b"api-key", b"x-api-key"))
NOT_PASSED_ON = HOP_BY_HOP | CREDENTIALS | {b"host", b"origin", b"content-type", b"content-length", b"x-request-id"}
_TIMEOUTS = frozenset((b"x-request-timeout", b"x-stainless-read-timeout"))
_SECONDS = re.compile(rb"[0-9]{1,7}(\.[0-9]{1,6})?")
_KEPT_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")


class ClientGone(Exception):
    """The client hung up before its request was whole."""


class Wishes(msgspec.Struct, kw_only=True):
    """What a JSON body says besides its model that this gateway goes by. Any value may be there: engines judge them."""

    max_tokens: Any = None
    max_completion_tokens: Any = None
    max_output_tokens: Any = None
    n: Any = None
    priority: Any = None

    @property
    def most_tokens(self) -> Any:
        """Of one choice."""
        return self.max_tokens or self.max_completion_tokens or self.max_output_tokens


class Routing(Wishes, kw_only=True):
    model: str


_decoder = msgspec.json.Decoder(Routing)
NO_WISHES = Wishes()


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """A request that names a model. `patience`: seconds after which its client wants no answer any more; 0: unknown."""

    model: str
    call: EngineCall
    wishes: Wishes = NO_WISHES
    patience: float = 0.0


def request_id(scope: Scope) -> bytes:
    """The client's own X-Request-Id if it is a plain one, else a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _KEPT_ID.fullmatch(value):
            return bytes(value)
    return token_hex(16).encode()


async def read_request(scope: Scope, receive: Receive, request_id: bytes) -> ModelRequest:
    """Raises `InvalidRequest` naming what is wrong and where, and `ClientGone`."""
    body = await _read_body(scope, receive)
    sent_type = _content_type(scope["headers"])
    content_type, wishes = sent_type, NO_WISHES
    model = model_in_query(scope["query_string"])
    if model is None and is_form(sent_type):
        model = model_in_form(body, sent_type)
    elif model is None:
        wishes = routing = routing_of(body)
        model, content_type = routing.model, b"application/json"
        if wishes.priority is not None:
            body = _without_priority(body)
    headers = _passed_on(scope["headers"], request_id, content_type, len(body))
    call = EngineCall(scope["method"], scope["path"], scope["query_string"], headers, body)
    return ModelRequest(model, call, wishes, _patience(scope["headers"]))


def model_in_query(query: bytes) -> str | None:
    """What `?model=` says, if it is there."""
    if b"model=" not in query:
        return None
    named = parse_qs(query.decode("latin-1"), encoding="utf-8", errors="replace").get("model")
    return named[-1] if named else None


def routing_of(body: bytes) -> Routing:
    """The "model" of a JSON body and its wishes; nothing else is looked at, but one broken anywhere is refused."""
    if not body:
        raise InvalidRequest("The body is empty; send a JSON object with a 'model', or name it with ?model=NAME.")
    try:
        return _decoder.decode(body.decode())
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"The body is not valid UTF-8 (byte {error.start}).") from error
    except RecursionError as error:
        raise InvalidRequest("The body's JSON is nested too deeply.") from error
    except msgspec.ValidationError as error:
        raise _wrong_shape(str(error)) from error
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"The body is not valid JSON: {_fault(str(error))}.") from error


def _wrong_shape(fault: str) -> InvalidRequest:
    if "missing required field" in fault:
        return InvalidRequest("The body has no 'model'; GET /v1/models lists what is served.", "model")
    if "$.model" in fault:
        return InvalidRequest(f"'model' must be a string: {fault.partition(' - at')[0].lower()}.", "model")
    return InvalidRequest(f"The body must be a JSON object: {fault.lower()}.")


def _fault(fault: str) -> str:
    return fault.removeprefix("JSON is malformed: ").replace("Input data was truncated", "it ends too early")


def _without_priority(body: bytes) -> bytes:
    """This gateway has put the request in its place; an engine without priorities of its own would refuse the field."""
    fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    del fields["priority"]
    return msgspec.json.encode(fields)


def _patience(headers: Headers) -> float:
    """As the client says by X-Request-Timeout, or OpenAI's own library by the time it waits for bytes."""
    for name, value in headers:
        if name in _TIMEOUTS and _SECONDS.fullmatch(value):
            return float(value)
    return 0.0


async def _read_body(scope: Scope, receive: Receive) -> bytes:
    for name, value in scope["headers"]:
        if name == b"content-length" and int(value) > BODY_LIMIT:
            raise _too_large()
    pieces: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        pieces.append(message.get("body", b""))
        size += len(pieces[-1])
        if size > BODY_LIMIT:
            raise _too_large()
        if not message.get("more_body"):
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _too_large() -> BodyTooLarge:
    return BodyTooLarge(f"The body is larger than {BODY_LIMIT >> 20} MiB; send less.")


def _content_type(headers: Headers) -> bytes:
    return next((value for name, value in headers if name == b"content-type"), b"")


def _passed_on(headers: Headers, request_id: bytes, content_type: bytes, length: int) -> Headers:
    named = _named_by_connection(headers)
    kept = [header for header in headers if header[0] not in NOT_PASSED_ON and header[0] not in named]
    if content_type:  # for a body that was seen to be JSON it is that: an engine may insist
        kept.append((b"content-type", content_type))
    kept += ((b"content-length", b"%d" % length), (b"x-request-id", request_id))
    return tuple(kept)


def _named_by_connection(headers: Headers) -> frozenset[bytes]:
    """Headers the client declared to be for this hop only."""
    for name, value in headers:
        if name == b"connection" and value.lower() not in (b"keep-alive", b"close"):
            return frozenset(token.strip().lower() for token in value.split(b","))
    return frozenset()
