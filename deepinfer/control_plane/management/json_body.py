"""A request's body as a JSON object, whatever its Content-Type says: `curl -d` sends a form's."""

from __future__ import annotations

import json
import math
from typing import Any

from fastapi import Request

from deepinfer.control_plane.openai_errors import BodyTooLarge
from deepinfer.fleet.errors import InvalidRequest

LIMIT_BYTES = 64 * 1024
"""A spec is copied into each of its placements, and etcd takes 1.5 MiB at once."""
LIMIT_BYTES_OF_MANY = 4 * 1024 * 1024


async def json_object(request: Request) -> dict[str, Any]:
    """Raises `InvalidRequest` with what is wrong and where."""
    return _object(await _whole(request))


async def large_json_object(request: Request) -> dict[str, Any]:
    """The same where many deployments are in it."""
    return _object(await _whole(request, LIMIT_BYTES_OF_MANY))


async def json_object_if_any(request: Request) -> dict[str, Any]:
    """The same where a body may be left out."""
    body = await _whole(request)
    return _object(body) if body else {}


def _object(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body, parse_constant=_no_constant, parse_float=_finite)
        json.dumps(found, ensure_ascii=False).encode()  # half a surrogate pair could be said to nobody
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}.") from error
    if not isinstance(found, dict):
        raise InvalidRequest('The body must be a JSON object, such as {"model": "smollm2", "engine": "layer-shard"}.')
    return found


async def _whole(request: Request, limit: int = LIMIT_BYTES) -> bytes:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > limit:
            raise BodyTooLarge(f"The body is larger than {limit} bytes; a deployment needs far less.")
    return bytes(body)


def _finite(number: str) -> float:
    """What is too large for a float would be stored as null."""
    found = float(number)
    if not math.isfinite(found):
        raise InvalidRequest(f"The body is not valid JSON: {number[:80]} is too large a number.")
    return found


def _no_constant(name: str) -> Any:
    raise InvalidRequest(f"The body is not valid JSON: {name} is not a number there.")
