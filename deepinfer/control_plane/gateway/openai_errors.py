"""Failures in OpenAI's words: typed error -> status and body. No other module builds an error body."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from deepinfer.control_plane.gateway.asgi import Headers, Reply
from deepinfer.fleet import errors


class BodyTooLarge(errors.InvalidRequest):
    """The request's body is too large."""


class MethodNotAllowed(errors.InvalidRequest):
    """This path does not take that method."""

    def __init__(self, message: str, allowed: str) -> None:
        super().__init__(message)
        self.allowed = allowed


class Told(NamedTuple):
    """How a kind of failure is told to a client."""

    status: int
    type: str
    code: str | None = None


RETRY_AFTER_SECONDS = 2
TOLD: dict[type[errors.DeepinferError], Told] = {
    BodyTooLarge: Told(413, "invalid_request_error", "body_too_large"),
    MethodNotAllowed: Told(405, "invalid_request_error", "method_not_allowed"),
    errors.InvalidRequest: Told(400, "invalid_request_error"),
    errors.ModelNotServed: Told(404, "invalid_request_error", "model_not_found"),
    errors.NoReadyReplica: Told(503, "service_unavailable", "no_ready_replica"),
    errors.StoreUnavailable: Told(503, "service_unavailable", "store_unavailable"),
    errors.EngineFailed: Told(502, "server_error", "engine_failed"),
    errors.DeepinferError: Told(500, "server_error"),
}


def error_reply(error: errors.DeepinferError, headers: Headers = ()) -> Reply:
    """The answer to a request that failed before anything was sent."""
    told = _told(error)
    return Reply(told.status, _error_json(error, told), (*headers, *_headers(error, told)))


def error_event(error: errors.DeepinferError) -> bytes:
    """The same as an event of a stream that had begun. No [DONE] follows: the answer is not whole."""
    return b"data: " + _error_json(error, _told(error)) + b"\n\n"


def _told(error: errors.DeepinferError) -> Told:
    return next(TOLD[kind] for kind in type(error).__mro__ if kind in TOLD)


def _error_json(error: errors.DeepinferError, told: Told) -> bytes:
    param = "model" if isinstance(error, errors.ModelNotServed) else getattr(error, "param", None)
    fields = {"message": str(error), "type": told.type, "param": param, "code": told.code}
    return msgspec.json.encode({"error": fields})


def _headers(error: errors.DeepinferError, told: Told) -> Headers:
    if isinstance(error, MethodNotAllowed):
        return ((b"allow", error.allowed.encode()),)
    return ((b"retry-after", b"%d" % RETRY_AFTER_SECONDS),) if told.status == 503 else ()
