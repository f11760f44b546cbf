"""A name of a user's own for deployments, and how its requests are split over them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints, field_validator

from deepinfer.fleet.resource import Name, Record

MOST_TARGETS = 16
AliasName = Annotated[
    str, StringConstraints(max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]*(/[A-Za-z0-9][A-Za-z0-9._:-]*)*$")
]


class AliasTarget(Record):
    """A deployment, and its part of the requests beside the other targets' weights."""

    deployment: Name
    weight: int = Field(default=1, ge=1, le=10_000)


class Alias(Record):
    """What a request's "model" may say instead of its targets' names."""

    name: AliasName
    created_at: str  # ISO 8601, UTC; shown to people, never compared
    targets: Annotated[tuple[AliasTarget, ...], Field(min_length=1, max_length=MOST_TARGETS)]

    @field_validator("targets")
    @classmethod
    def _each_once(cls, targets: tuple[AliasTarget, ...]) -> tuple[AliasTarget, ...]:
        named = [target.deployment for target in targets]
        for name in named:
            if named.count(name) > 1:
                raise ValueError(f"{name} is there twice; give each deployment one weight")
        return targets
