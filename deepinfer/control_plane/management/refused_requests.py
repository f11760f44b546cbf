"""How the management API tells a failure: typed error -> status, in OpenAI's error shape. Nothing else builds one."""

from __future__ import annotations

from typing import NamedTuple

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from deepinfer.fleet import errors


class ForeignOrigin(errors.DeepinferError):
    """A web page of another origin may not change the fleet."""


class NodeNotConnected(errors.DeepinferError):
    """The node is not connected; start its worker again."""


class BodyTooLarge(errors.InvalidRequest):
    """The request's body is too large."""


class UnreadableDeployment(errors.DeepinferError):
    """The deployment's record cannot be read by this version; delete it or repair it in etcd."""


class Told(NamedTuple):
    """How a kind of failure is told to a client."""

    status: int
    type: str
    code: str | None = None


RETRY_AFTER_SECONDS = 2
TOLD: dict[type[errors.DeepinferError], Told] = {
    BodyTooLarge: Told(413, "invalid_request_error", "body_too_large"),
    ForeignOrigin: Told(403, "permission_error", "foreign_origin"),
    NodeNotConnected: Told(503, "service_unavailable", "node_not_connected"),
    UnreadableDeployment: Told(409, "conflict", "deployment_unreadable"),
    errors.InvalidRequest: Told(400, "invalid_request_error"),
    errors.DeploymentNotFound: Told(404, "invalid_request_error", "deployment_not_found"),
    errors.ReplicaNotFound: Told(404, "invalid_request_error", "replica_not_found"),
    errors.DeploymentExists: Told(409, "conflict", "deployment_exists"),
    errors.StoreConflict: Told(409, "conflict", "changed_meanwhile"),
    errors.NotBuiltYet: Told(501, "not_built_yet", "not_built_yet"),
    errors.StoreUnavailable: Told(503, "service_unavailable", "store_unavailable"),
    errors.DeepinferError: Told(500, "server_error"),
}


def tell_failures(app: FastAPI) -> None:
    """Every failure of `app` is answered here, FastAPI's own included."""
    app.add_exception_handler(errors.DeepinferError, _typed)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _no_such_route)
    app.add_exception_handler(Exception, _unforeseen)


def refusal(error: errors.DeepinferError) -> JSONResponse:
    """The answer to a request that failed with `error`."""
    told = next(TOLD[kind] for kind in type(error).__mro__ if kind in TOLD)
    headers = {"retry-after": str(RETRY_AFTER_SECONDS)} if told.status == 503 else None
    return _body(told, str(error), getattr(error, "param", None), headers)


def _body(told: Told, message: str, param: str | None = None, headers: dict[str, str] | None = None) -> JSONResponse:
    fields = {"message": message, "type": told.type, "param": param, "code": told.code}
    return JSONResponse({"error": fields}, told.status, headers)


async def _typed(_: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, errors.DeepinferError):
        raise error
    return refusal(error)


async def _invalid(_: Request, error: Exception) -> JSONResponse:
    """A query parameter or a path that FastAPI checks; bodies are checked by `admission`."""
    if not isinstance(error, RequestValidationError):
        raise error
    wrong = error.errors()[0]
    param = str(wrong["loc"][-1])
    return refusal(errors.InvalidRequest(f"{param}: {wrong['msg']}.", param=param))


async def _no_such_route(request: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, HTTPException):
        raise error
    message = f"{request.method} {request.url.path}: {error.detail}; /docs lists what there is."
    return _body(Told(error.status_code, "invalid_request_error"), message, headers=dict(error.headers or {}))


async def _unforeseen(_: Request, error: Exception) -> JSONResponse:
    """A fault of ours; the server logs it with its traceback."""
    return _body(Told(500, "server_error"), f"The control plane failed ({type(error).__name__}); its log says more.")
