"""Frozen values that cross a process or a disk, readable as JSON; and what all of them name things by."""

from __future__ import annotations

from typing import Annotated

from packaging import version
from pydantic import AfterValidator, BaseModel, ConfigDict, StringConstraints

LONGEST_NAME = 63
NAME = r"^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$"
Name = Annotated[str, StringConstraints(pattern=NAME)]
LabelKey = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?$")]
LabelValue = Annotated[str, StringConstraints(pattern=r"^([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?$")]


def _comparable(text: str) -> str:
    """What is not a version must not get as far as the scheduler, which compares them all."""
    try:
        version.Version(text)
    except version.InvalidVersion as error:
        raise ValueError(f"{text} is not a version, such as 0.32.0") from error
    return text


Version = Annotated[str, StringConstraints(pattern=r"^\d[A-Za-z0-9.+]{0,63}$"), AfterValidator(_comparable)]


class Resource(BaseModel):
    """A frozen value; an unknown field is a typo and is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    def to_json(self) -> bytes:
        return self.model_dump_json(exclude_none=True).encode()


class Record(Resource):
    """What lies in the store. Fields that a newer version added are kept: older processes work beside newer ones."""

    model_config = ConfigDict(extra="allow")
