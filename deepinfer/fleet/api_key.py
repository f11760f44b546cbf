"""Who may come in: a key as it lies in the store. Its secret is nowhere; whoever shows it is known by its digest."""

from __future__ import annotations

import secrets
from datetime import datetime
from enum import StrEnum
from hashlib import sha256
from typing import Annotated

from pydantic import AfterValidator, Field, StringConstraints

from deepinfer.fleet.resource import Name, Record

LOWEST_PRIORITY, HIGHEST_PRIORITY = -100, 100
_SECRET_BYTES = 32
VARIABLE = "DEEPINFER_API_KEY"
"""Of the environment: the secret that the command line shows."""


class Role(StrEnum):
    """What a key is for."""

    USER = "user"  # requests to models
    ADMIN = "admin"  # and the management API: whoever says what runs, runs programs on the nodes


class KeyLimits(Record):
    """Of all requests of one key together; None: none."""

    requests_per_minute: int | None = Field(default=None, ge=1)
    tokens_per_minute: int | None = Field(default=None, ge=1)
    concurrent_streams: int | None = Field(default=None, ge=1)


def _moment(text: str) -> str:
    if datetime.fromisoformat(text).tzinfo is None:
        raise ValueError(f"{text} says no time zone")
    return text


class ApiKey(Record):
    """One key. A role that this version does not know makes it unreadable, and then it opens nothing."""

    id: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{12}$")]  # public, as the name is
    name: Name
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]  # of the secret, which has 256 random bits
    role: Role = Role.USER
    models: tuple[str, ...] = ()  # that a request's "model" may name; empty: all
    limits: KeyLimits = Field(default_factory=KeyLimits)
    priority: int = Field(default=0, ge=LOWEST_PRIORITY, le=HIGHEST_PRIORITY)  # of its requests among others
    created_at: str  # ISO 8601, UTC; shown to people
    expires_at: Annotated[str, AfterValidator(_moment)] | None = None  # ISO 8601 with its zone


def new_secret() -> str:
    return f"di-{secrets.token_urlsafe(_SECRET_BYTES)}"


def digest_of(secret: str) -> str:
    return sha256(secret.encode()).hexdigest()
