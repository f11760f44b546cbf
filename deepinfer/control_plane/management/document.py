"""/openapi.json, which /docs shows: what FastAPI knows of the routes, and besides what each may be refused with.

What a route is refused with follows from what it is, so a new one is described without a word of its own.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute

ABOUT = """What should run (deployments), what runs (replicas), and where (nodes).

Errors have OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`. The OpenAI endpoints are at `/v1/models`,
`/v1/chat/completions` and so on, on the same port. Bodies are JSON whatever their `Content-Type`.

An answer with the header `X-Deepinfer-Stale-Since` tells what was last known: the store is away since then.
"""
TAGS = [
    {"name": "deployments", "description": "What should run: a model, what computes it, on what, how many times."},
    {"name": "rollouts", "description": "A deployment's generations: how far the newest is, and back to another one."},
    {"name": "aliases", "description": "Other names for deployments, their requests split by weight."},
    {"name": "replicas", "description": "What runs, and what it wrote."},
    {"name": "nodes", "description": "The machines, and what people decide about them."},
    {"name": "events", "description": "What happened in the last hour."},
    {"name": "fleet", "description": "Which fleet this is, and whether its store can be relied upon."},
    {"name": "API keys", "description": "Who may ask, for what, and how much."},
    {"name": "model server", "description": "The same as model servers have it: load, unload and swap models."},
]
_REFUSALS = {
    400: ("Something in the request is wrong; `param` says what.", "invalid_request_error", None),
    401: ("It needs an API key, and a valid one.", "authentication_error", "invalid_api_key"),
    403: ("The key does not allow it, or a web page of another origin asks.", "permission_error", "foreign_origin"),
    404: ("There is nothing of that name.", "invalid_request_error", "deployment_not_found"),
    409: ("It cannot be done as things are.", "conflict", "deployment_exists"),
    413: ("The body is too large.", "invalid_request_error", "body_too_large"),
    503: ("The store, or a node, does not answer now.", "service_unavailable", "store_unavailable"),
}
_TEXT_OR_NULL = {"anyOf": [{"type": "string"}, {"type": "null"}]}
_ERROR: dict[str, Any] = {
    "title": "Error",
    "description": "OpenAI's error object. `param` is the field that is wrong; `code` is for programs.",
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": _TEXT_OR_NULL,
                "code": _TEXT_OR_NULL,
            },
        }
    },
}


def operation_id(route: APIRoute) -> str:
    """The route's name: it stays when its path moves."""
    return route.name


def complete_document(app: FastAPI) -> None:
    """From now on `app` describes its refusals too."""
    without = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = with_refusals(without())
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign] # FastAPI's way to extend it


def with_refusals(document: dict[str, Any]) -> dict[str, Any]:
    """In place of FastAPI's own 422, which this API never answers."""
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            answers = operation["responses"]
            answers.pop("422", None)
            for status in sorted(_refused_with(path, method, operation)):
                answers.setdefault(str(status), _answer(status))
    used = {tag for operations in document["paths"].values() for each in operations.values() for tag in each["tags"]}
    document["tags"] = [tag for tag in document.get("tags", []) if tag["name"] in used]
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    schemas["Error"] = _ERROR
    return document


def _refused_with(path: str, method: str, operation: dict[str, Any]) -> set[int]:
    found = {401, 403, 503}
    if operation.get("parameters"):
        found |= {400}
    if "{" in path:
        found |= {404, 409}  # also what is only read may have a record that cannot be read
    if method != "get":
        found |= {409}
    if "requestBody" in operation:
        found |= {400, 413}
        if path.startswith("/api/"):  # what it is about is in the body
            found |= {404}
    return found


def _answer(status: int) -> dict[str, Any]:
    description, kind, code = _REFUSALS[status]
    error = {"message": description, "type": kind, "param": None, "code": code}
    schema = {"$ref": "#/components/schemas/Error"}
    told: dict[str, Any] = {
        "description": description,
        "content": {"application/json": {"schema": schema, "example": {"error": error}}},
    }
    if status == 503:
        told["headers"] = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}
    return told
