"""A failure as an answer of the data path: a whole one, or an event of a stream that had begun."""

from __future__ import annotations

from typing import Any

import msgspec

from deepinfer.control_plane.gateway.asgi import Headers, Reply
from deepinfer.control_plane.openai_errors import error_body, error_headers, told
from deepinfer.fleet.errors import DeepinferError

ANTHROPIC_PATH = "/v1/messages"
"""What is below it has errors, and events of streams, of another shape."""
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def error_reply(error: DeepinferError, headers: Headers = (), path: str = "") -> Reply:
    """The answer to a request that failed before anything was sent."""
    own = ((name.encode(), value.encode()) for name, value in error_headers(error).items())
    status = told(error).status
    body = anthropic_error(status, str(error)) if path.startswith(ANTHROPIC_PATH) else error_body(error)
    return Reply(status, msgspec.json.encode(body), (*headers, *own))


def anthropic_error(status: int, message: str) -> dict[str, Any]:
    """Anthropic's error object."""
    kind = _ANTHROPIC_TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": message}}


def error_event(error: DeepinferError, path: str) -> bytes:
    """The same as an event of a stream that had begun. No [DONE] follows: the answer is not whole."""
    if path.startswith(ANTHROPIC_PATH):
        body = anthropic_error(told(error).status, str(error))
        return b"event: error\ndata: " + msgspec.json.encode(body) + b"\n\n"
    return b"data: " + msgspec.json.encode(error_body(error)) + b"\n\n"
