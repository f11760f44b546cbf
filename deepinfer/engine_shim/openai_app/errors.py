"""Errors in OpenAI's shape. The only place where a type of error becomes a status and a JSON body."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from deepinfer.engine_shim.token_engine import ContextTooLong
from deepinfer.fleet.errors import DeepinferError, EngineFailed, InvalidRequest, ModelNotServed, NoReadyReplica


class UnknownPath(InvalidRequest):
    """This engine serves no such path."""


class WrongMethod(InvalidRequest):
    """The path exists, but not for this method."""


@dataclass(frozen=True, slots=True)
class _Kind:
    status: int
    type: str
    code: str | None = None


_KINDS: dict[type[Exception], _Kind] = {
    ContextTooLong: _Kind(400, "invalid_request_error", "context_length_exceeded"),
    InvalidRequest: _Kind(400, "invalid_request_error"),
    ModelNotServed: _Kind(404, "invalid_request_error", "model_not_found"),
    UnknownPath: _Kind(404, "invalid_request_error", "unknown_url"),
    WrongMethod: _Kind(405, "invalid_request_error", "method_not_allowed"),
    NoReadyReplica: _Kind(503, "service_unavailable_error", "engine_not_ready"),
    EngineFailed: _Kind(500, "server_error", "engine_failed"),
}
_UNFORESEEN = _Kind(500, "server_error", "internal_error")


def status_of(error: Exception) -> int:
    return _kind(error).status


def body_of(error: Exception) -> bytes:
    """{"error": …}. What was not foreseen is named, not quoted: it may hold what a client should not see."""
    kind = _kind(error)
    known = isinstance(error, DeepinferError)
    message = str(error) if known else f"The engine failed unexpectedly ({type(error).__name__}); its log says more."
    param = getattr(error, "param", None)
    return msgspec.json.encode({"error": {"message": message, "type": kind.type, "param": param, "code": kind.code}})


def _kind(error: Exception) -> _Kind:
    return next((_KINDS[each] for each in type(error).__mro__ if each in _KINDS), _UNFORESEEN)
