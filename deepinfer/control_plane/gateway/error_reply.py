"""A failure as an answer of the data path: a whole one, or an event of a stream that had begun."""

from __future__ import annotations

import msgspec

from deepinfer.control_plane.gateway.asgi import Headers, Reply
from deepinfer.control_plane.openai_errors import error_body, error_headers, told
from deepinfer.fleet.errors import DeepinferError

ANTHROPIC_PATH = "/v1/messages"
"""Its streams have events of another shape."""


def error_reply(error: DeepinferError, headers: Headers = ()) -> Reply:
    """The answer to a request that failed before anything was sent."""
    own = ((name.encode(), value.encode()) for name, value in error_headers(error).items())
    return Reply(told(error).status, msgspec.json.encode(error_body(error)), (*headers, *own))


def error_event(error: DeepinferError, path: str) -> bytes:
    """The same as an event of a stream that had begun. No [DONE] follows: the answer is not whole."""
    if path.startswith(ANTHROPIC_PATH):
        body = {"type": "error", "error": {"type": "api_error", "message": str(error)}}
        return b"event: error\ndata: " + msgspec.json.encode(body) + b"\n\n"
    return b"data: " + msgspec.json.encode(error_body(error)) + b"\n\n"
