"""What may be asked of an API key: a body becomes its fields, or a sentence on what to write instead. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import Field, StringConstraints, ValidationError
from pydantic_core import ErrorDetails

from deepinfer.control_plane.management.admission import ALLOWED as OF_DEPLOYMENTS
from deepinfer.fleet.api_key import HIGHEST_PRIORITY, LOWEST_PRIORITY, KeyLimits, Role
from deepinfer.fleet.errors import InvalidRequest
from deepinfer.fleet.resource import Name, Resource

R = TypeVar("R", bound=Resource)
_LIMIT = "a whole number of 1 or more, or null"
ALLOWED = {
    "name": OF_DEPLOYMENTS["name"],
    "role": '"user" or "admin"',
    "models": 'a list of names that a request\'s "model" may have, such as ["chat"]; empty: all',
    "limits": "an object of requests_per_minute, tokens_per_minute and concurrent_streams",
    "limits.requests_per_minute": _LIMIT,
    "limits.tokens_per_minute": _LIMIT,
    "limits.concurrent_streams": _LIMIT,
    "priority": f"a whole number from {LOWEST_PRIORITY} to {HIGHEST_PRIORITY}",
    "expires_in_seconds": "a whole number from 1 to 3153600000",
}


class _Limits(Resource):
    """As they are asked for: an unknown one is a mistake."""

    requests_per_minute: int | None = Field(default=None, ge=1)
    tokens_per_minute: int | None = Field(default=None, ge=1)
    concurrent_streams: int | None = Field(default=None, ge=1)


class KeyChanges(Resource):
    """What may become of a key that there is."""

    models: tuple[Annotated[str, StringConstraints(min_length=1, max_length=200)], ...] = Field(
        default=(), max_length=1000
    )
    limits: _Limits = Field(default_factory=_Limits)
    priority: int = Field(default=0, ge=LOWEST_PRIORITY, le=HIGHEST_PRIORITY)


class NewKey(KeyChanges):
    """A key that is wanted."""

    name: Name
    role: Role = Role.USER
    expires_in_seconds: int | None = Field(default=None, ge=1, le=3_153_600_000)


def new_key(body: Mapping[str, Any]) -> NewKey:
    """Raises `InvalidRequest`."""
    return _checked(NewKey, body)


def changed_fields(body: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of the record, each as a whole; null gives one its default again. Raises `InvalidRequest`."""
    wanted = _checked(KeyChanges, body)
    fields = {"models": wanted.models, "limits": limits_of(wanted), "priority": wanted.priority}
    return {field: value for field, value in fields.items() if field in body}


def limits_of(wanted: KeyChanges) -> KeyLimits:
    return KeyLimits(**wanted.limits.model_dump())


def _checked(kind: type[R], body: Mapping[str, Any]) -> R:
    given = {field: value for field, value in body.items() if value is not None}
    try:
        return kind.model_validate_json(json.dumps(given), strict=True)
    except ValidationError as error:
        raise _refused(error.errors()[0], kind) from error


def _refused(wrong: ErrorDetails, kind: type[Resource]) -> InvalidRequest:
    param = ".".join(str(part) for part in wrong["loc"] if isinstance(part, str))
    if wrong["type"] == "extra_forbidden":
        return InvalidRequest(f"Unknown field {json.dumps(param[:64])}; the fields are {_fields(kind)}.", param=param)
    if wrong["type"] == "missing":
        return InvalidRequest(f"{param} is required: {ALLOWED[param]}.", param=param)
    return InvalidRequest(f"{param} must be {ALLOWED[param]}.", param=param)


def _fields(kind: type[Resource]) -> str:
    return ", ".join(field for field in ALLOWED if field.partition(".")[0] in kind.model_fields)
