"""What an engine says when it refuses or fails, in the shape its client reads: OpenAI's, or Anthropic's on its paths.

Engines, and what stands before them, say it in many ways: FastAPI's {"detail": …}, {"object": "error", "message": …},
a bare text, a page of HTML, nothing. Status and headers stay as they are, and so does every byte of a body that has its
client's shape already. Of any other no more is read than `READ_BYTES`. What is compressed cannot be judged and goes on.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from deepinfer.control_plane.gateway.asgi import Headers, Reply
from deepinfer.control_plane.gateway.body import ModelRequest
from deepinfer.control_plane.gateway.error_reply import ANTHROPIC_PATH, anthropic_error
from deepinfer.control_plane.openai_errors import Told, error_object
from deepinfer.engine_shim.client import Answer
from deepinfer.engine_shim.frames import HOP_BY_HOP
from deepinfer.fleet.errors import EngineFailed

READ_BYTES = 64 << 10
QUOTED_CHARACTERS = 500
_NOT_KEPT = HOP_BY_HOP | {b"server", b"date", b"x-request-id", b"content-type", b"content-length"}
_SAYS_NOTHING = ("", "Not Found", "Method Not Allowed", "Internal Server Error")
"""Words of web frameworks that only repeat the status."""

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error", 503: "service_unavailable"}
_CODES = {404: "unknown_url", 405: "method_not_allowed"}

_POOLING = 'It takes a model for embeddings or scores; vLLM makes one of others with engine_args {"runner": "pooling"}.'
_HEARING = "It takes a model that understands speech."
_NEEDS = {
    "/v1/embeddings": _POOLING,
    "/v2/embed": _POOLING,
    "/pooling": _POOLING,
    "/classify": _POOLING,
    "/score": _POOLING,
    "/v1/score": _POOLING,
    "/rerank": _POOLING,
    "/v1/rerank": _POOLING,
    "/v2/rerank": _POOLING,
    "/v1/audio/transcriptions": _HEARING,
    "/v1/audio/translations": _HEARING,
    "/v1/audio/speech": "It takes a model that speaks, and an engine for it.",
    "/v1/images/generations": "It takes a model that makes images, and an engine for it.",
    "/v1/images/edits": "It takes a model that makes images, and an engine for it.",
    "/v1/images/variations": "It takes a model that makes images, and an engine for it.",
}


class Said(NamedTuple):
    """What could be understood of an error."""

    message: str
    type: str | None = None
    param: str | None = None
    code: str | None = None


async def engine_error(answer: Answer, first: bytes, request: ModelRequest, own: Headers) -> Reply:
    """The whole answer for the client; `first` is what was already read of the engine's, `own` headers of ours."""
    headers = (*(header for header in answer.headers if header[0] not in _NOT_KEPT), *own)
    content_type = next((value for name, value in answer.headers if name == b"content-type"), b"")
    body = await _read(answer, first)
    if _is_understood(body, request.call.path) or any(name == b"content-encoding" for name, _ in headers):
        return Reply(answer.status, body, headers, content_type or b"application/octet-stream")
    return Reply(answer.status, in_shape(answer.status, body, request), headers)


def in_shape(status: int, body: bytes, request: ModelRequest) -> bytes:
    """An error's body as the request's path has them."""
    said = _said(body)
    if said.message.strip() in _SAYS_NOTHING:
        said = said._replace(message=_unsaid(status, request))
    if request.call.path.startswith(ANTHROPIC_PATH):
        return msgspec.json.encode(anthropic_error(status, said.message))
    kind = said.type or _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    code = said.code or _CODES.get(status, None if status < 500 else "engine_failed")
    return msgspec.json.encode(error_object(said.message, Told(status, kind, code), said.param))


async def _read(answer: Answer, first: bytes) -> bytes:
    pieces, size = [first], len(first)
    try:
        async for piece in answer:
            pieces.append(piece)
            size += len(piece)
            if size > READ_BYTES:
                break
    except EngineFailed:
        pass  # the status says already that it failed; what came of its words is told
    return b"".join(pieces)[:READ_BYTES]


def _is_understood(body: bytes, path: str) -> bool:
    value = _decoded(body)
    if not isinstance(value, dict) or not isinstance(error := value.get("error"), dict):
        return False
    if not isinstance(error.get("message"), str):
        return False
    return not path.startswith(ANTHROPIC_PATH) or value.get("type") == "error"


def _decoded(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _said(body: bytes) -> Said:
    value = _decoded(body)
    if not isinstance(value, dict):
        return Said(_quoted(value if isinstance(value, str) else body.decode("utf-8", "replace")))
    error = value.get("error")
    told = error if isinstance(error, dict) else value
    for message in (told.get("message"), error, value.get("detail")):
        if isinstance(message, str):
            return Said(message, *(_text(told.get(name)) for name in ("type", "param", "code")))
    return _validation(value.get("detail")) or Said(_quoted(body.decode("utf-8", "replace")))


def _validation(detail: object) -> Said | None:
    """FastAPI's words for a field that is wrong: the first of a list."""
    first = detail[0] if isinstance(detail, list) and detail else None
    if not isinstance(first, dict) or not isinstance(first.get("msg"), str):
        return None
    place = first.get("loc")
    param = ".".join(map(str, place[1:])) if isinstance(place, list) else ""  # without "body"
    return Said(f"'{param}': {first['msg']}." if param else first["msg"], param=param or None)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _quoted(text: str) -> str:
    """No page of HTML, and no more of anything than a person reads."""
    text = text.strip()
    if text.startswith("<"):
        return ""
    return text if len(text) <= QUOTED_CHARACTERS else f"{text[:QUOTED_CHARACTERS]}…"


def _unsaid(status: int, request: ModelRequest) -> str:
    model, method, path = request.model[:200], request.call.method, request.call.path
    if status == 404:
        missing = f"The engine of '{model}' does not serve {path} as it is deployed."
        return f"{missing} {_NEEDS[path]}" if path in _NEEDS else missing
    if status == 405:
        return f"The engine of '{model}' does not take {method} for {path}."
    return f"The engine of '{model}' answered with status {status} and did not say why."
