"""Failures in OpenAI's words: typed error -> status and body. This process has one table, and it is here."""

from __future__ import annotations

from typing import Any, NamedTuple

from deepinfer.fleet import errors

RETRY_AFTER_SECONDS = 2
CLIENT_GONE = 499
"""The status that counts when the client hung up first; nobody saw it."""
QUEUE_POSITION = "x-deepinfer-queue-position"
"""How many requests were before this one when it came; in answers to those that waited or were refused for it."""
QUEUE_SECONDS = "x-deepinfer-queue-seconds"


class BodyTooLarge(errors.InvalidRequest):
    """The request's body is too large."""


class NotHttp(errors.InvalidRequest):
    """What came is not HTTP/1.1, or could be read in two ways."""


class HeadTooLarge(errors.InvalidRequest):
    """The request's line and headers are too large."""


class RequestTooSlow(errors.InvalidRequest):
    """The request did not come in time."""


class EncodedBody(errors.InvalidRequest):
    """The request's body is compressed."""


class TooManyConnections(errors.DeepinferError):
    """There are as many connections as there may be; close some, or come again soon."""


class MethodNotAllowed(errors.InvalidRequest):
    """This path does not take that method."""

    def __init__(self, message: str, allowed: str) -> None:
        super().__init__(message)
        self.allowed = allowed


class ResponseNotFound(errors.DeepinferError):
    """Responses are kept by the engine that made them, if at all; say which: ?model=NAME."""


class DecisionNotKnown(errors.DeepinferError):
    """How a request's replica was chosen is not remembered."""


class StreamInterrupted(errors.EngineFailed):
    """The engine failed in the middle of an answer that cannot be continued."""


class ForeignOrigin(errors.DeepinferError):
    """A web page of another origin may not use this server."""


class InvalidHost(errors.InvalidRequest):
    """The Host header names no host."""


class InvalidApiKey(errors.DeepinferError):
    """This API key opens nothing here."""


class AdminOnly(errors.DeepinferError):
    """This path wants an admin's API key."""


class ModelNotAllowed(errors.DeepinferError):
    """This API key may not use that model."""


class ApiKeyNotFound(errors.DeepinferError):
    """There is no such API key; `deepinfer keys list` lists them."""


class ApiKeyExists(errors.DeepinferError):
    """An API key of that name exists already; revoke it first, or take another name."""


class Overloaded(errors.DeepinferError):
    """More requests wait for the model than its engines can answer in time."""

    def __init__(self, message: str, retry_seconds: int, position: int) -> None:
        super().__init__(message)
        self.retry_seconds = retry_seconds
        self.position = position


class RateLimited(errors.DeepinferError):
    """The API key has used what it may for now."""

    def __init__(self, message: str, retry_seconds: int) -> None:
        super().__init__(message)
        self.retry_seconds = retry_seconds


class GatewayEnds(errors.DeepinferError):
    """This gateway was told to end and takes nothing new; ask again: another one, or the next, will answer."""


class NodeNotConnected(errors.DeepinferError):
    """The node is not connected; start its worker again."""


class UnreadableDeployment(errors.DeepinferError):
    """The deployment's record cannot be read by this version; delete it or repair it in etcd."""


class RevisionNotFound(errors.DeepinferError):
    """The deployment has no such revision; `deepinfer rollout history` lists them."""


class NothingToUndo(errors.DeepinferError):
    """The deployment has no earlier revision that differs."""


class AliasNotFound(errors.DeepinferError):
    """There is no alias of that name; `deepinfer alias list` lists them."""


class AliasExists(errors.DeepinferError):
    """An alias has that name; `deepinfer alias remove` frees it."""


class NodeNotFound(errors.DeepinferError):
    """There is no node of that name; `deepinfer get nodes` lists them."""


class NodeInUse(errors.DeepinferError):
    """The node is connected, or may come back."""


class Told(NamedTuple):
    """How a kind of failure is told to a client."""

    status: int
    type: str
    code: str | None = None


TOLD: dict[type[errors.DeepinferError], Told] = {
    BodyTooLarge: Told(413, "invalid_request_error", "body_too_large"),
    NotHttp: Told(400, "invalid_request_error", "not_http"),
    HeadTooLarge: Told(431, "invalid_request_error", "head_too_large"),
    RequestTooSlow: Told(408, "invalid_request_error", "request_too_slow"),
    EncodedBody: Told(415, "invalid_request_error", "encoded_body"),
    TooManyConnections: Told(503, "service_unavailable", "too_many_connections"),
    MethodNotAllowed: Told(405, "invalid_request_error", "method_not_allowed"),
    DecisionNotKnown: Told(404, "invalid_request_error", "request_not_known"),
    ResponseNotFound: Told(404, "invalid_request_error", "response_not_found"),
    StreamInterrupted: Told(502, "server_error", "stream_interrupted"),
    ForeignOrigin: Told(403, "permission_error", "foreign_origin"),
    Overloaded: Told(429, "rate_limit_error", "model_overloaded"),
    RateLimited: Told(429, "rate_limit_error", "rate_limit_exceeded"),
    InvalidHost: Told(400, "invalid_request_error", "invalid_host"),
    InvalidApiKey: Told(401, "invalid_request_error", "invalid_api_key"),
    AdminOnly: Told(403, "permission_error", "admin_only"),
    ModelNotAllowed: Told(403, "permission_error", "model_not_allowed"),
    ApiKeyNotFound: Told(404, "invalid_request_error", "api_key_not_found"),
    ApiKeyExists: Told(409, "conflict", "api_key_exists"),
    GatewayEnds: Told(503, "service_unavailable", "gateway_ends"),
    NodeNotConnected: Told(503, "service_unavailable", "node_not_connected"),
    UnreadableDeployment: Told(409, "conflict", "deployment_unreadable"),
    RevisionNotFound: Told(404, "invalid_request_error", "revision_not_found"),
    NothingToUndo: Told(409, "conflict", "nothing_to_undo"),
    AliasNotFound: Told(404, "invalid_request_error", "alias_not_found"),
    AliasExists: Told(409, "conflict", "alias_exists"),
    NodeNotFound: Told(404, "invalid_request_error", "node_not_found"),
    NodeInUse: Told(409, "conflict", "node_in_use"),
    errors.InvalidRequest: Told(400, "invalid_request_error"),
    errors.ModelNotServed: Told(404, "invalid_request_error", "model_not_found"),
    errors.DeploymentNotFound: Told(404, "invalid_request_error", "deployment_not_found"),
    errors.ReplicaNotFound: Told(404, "invalid_request_error", "replica_not_found"),
    errors.DeploymentExists: Told(409, "conflict", "deployment_exists"),
    errors.StoreConflict: Told(409, "conflict", "changed_meanwhile"),
    errors.NotBuiltYet: Told(501, "not_built_yet", "not_built_yet"),
    errors.NoReadyReplica: Told(503, "service_unavailable", "no_ready_replica"),
    errors.AnotherFleet: Told(503, "service_unavailable", "another_fleet"),
    errors.StoreUnavailable: Told(503, "service_unavailable", "store_unavailable"),
    errors.EngineFailed: Told(502, "server_error", "engine_failed"),
    errors.DeepinferError: Told(500, "server_error"),
}


def told(error: errors.DeepinferError) -> Told:
    """What the nearest kind in the table says."""
    return next(TOLD[kind] for kind in type(error).__mro__ if kind in TOLD)


def code_of(error: errors.DeepinferError) -> str:
    """One of few words: for counting."""
    kind = told(error)
    return kind.code or kind.type


def error_body(error: errors.DeepinferError) -> dict[str, Any]:
    """OpenAI's error object for a failure of ours."""
    param = "model" if isinstance(error, errors.ModelNotServed | ModelNotAllowed) else getattr(error, "param", None)
    return error_object(str(error), told(error), param)


def error_object(message: str, kind: Told, param: str | None = None) -> dict[str, Any]:
    """OpenAI's error object."""
    return {"error": {"message": message, "type": kind.type, "param": param, "code": kind.code}}


def error_headers(error: errors.DeepinferError) -> dict[str, str]:
    """Which method is allowed; how to show a key; when to come again."""
    if isinstance(error, MethodNotAllowed):
        return {"allow": error.allowed}
    if isinstance(error, RateLimited):
        return {"retry-after": str(error.retry_seconds)}
    if isinstance(error, Overloaded):
        return {"retry-after": str(error.retry_seconds), QUEUE_POSITION: str(error.position)}
    if isinstance(error, InvalidApiKey):
        return {"www-authenticate": "Bearer"}
    return {"retry-after": str(RETRY_AFTER_SECONDS)} if told(error).status == 503 else {}
