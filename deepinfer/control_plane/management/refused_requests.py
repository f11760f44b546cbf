"""How the management API tells a failure: ours by the table in `openai_errors`, FastAPI's in the same shape."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match

from deepinfer.control_plane.openai_errors import TOLD, Told, error_body, error_headers, error_object, told
from deepinfer.fleet import errors


def tell_failures(app: FastAPI) -> None:
    """Every failure of `app` is answered here, FastAPI's own included."""
    app.add_exception_handler(errors.DeepinferError, _typed)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _no_such_route)
    app.add_exception_handler(Exception, _unforeseen)


def refusal(error: errors.DeepinferError) -> JSONResponse:
    """The answer to a request that failed with `error`."""
    return JSONResponse(error_body(error), told(error).status, error_headers(error))


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
    kind = Told(error.status_code, "invalid_request_error")
    headers = {name.lower(): value for name, value in (error.headers or {}).items()}
    if kind.status == 405:
        headers["allow"] = ", ".join(_methods(request))
    return JSONResponse(error_object(message, kind), kind.status, headers)


def _methods(request: Request) -> list[str]:
    """All that the path takes: FastAPI tells those of the first route that has it."""
    scopes = {method: {**request.scope, "method": method} for method in ("DELETE", "GET", "PATCH", "POST", "PUT")}
    routes = request.app.router.routes
    return [m for m, scope in scopes.items() if any(route.matches(scope)[0] is Match.FULL for route in routes)]


async def _unforeseen(_: Request, error: Exception) -> JSONResponse:
    """A fault of ours; the server logs it with its traceback."""
    message = f"The control plane failed ({type(error).__name__}); its log says more."
    kind = TOLD[errors.DeepinferError]
    return JSONResponse(error_object(message, kind), kind.status)
