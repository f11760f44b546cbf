"""What `configs/engine_compatibility.toml` says: refusing lines, recipes, reserved arguments. Packaged data.

A wrong entry stops the first process that reads it: it is this program's own file.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from pydantic import Field

from deepinfer.fleet.resource import Resource
from deepinfer.fleet.spec import EngineKind

FILE_NAME = "engine_compatibility.toml"
_RULE = re.compile(r"^\s*(\{ *refuse = .*\}),?\s*$")


class Rule(Resource):
    """Refuses a replica when everything that it names holds."""

    refuse: EngineKind
    versions: str = ""  # a version specifier, as all of these; empty: any
    accelerator: str | None = None
    capability: str = ""
    dtype: tuple[str, ...] = ()
    quantization: tuple[str, ...] = ()
    because: str


@dataclass(frozen=True)
class Line:
    """A rule, and where it stands, so that it can be shown."""

    number: int
    text: str
    rule: Rule


class Step(Resource):
    """One `pip install`."""

    requirement: str
    only: str = ""  # a specifier of the engine's versions that need it


class Dispensable(Resource):
    """A package that the engine asks for and can do without, and what it cannot do then."""

    module: str  # also the package's name
    without: str


class Recipe(Resource):
    """How an environment of one engine for one accelerator is made."""

    version: str  # the one that is installed when none is named
    steps: tuple[Step, ...]
    extra_index: str | None = None
    disk_gib: float = Field(gt=0)
    module: str  # importing it is the last trial
    flags: str  # our module that writes the engine's own flags down
    optional: tuple[Dispensable, ...] = ()


class Shim(Resource):
    requirements: tuple[str, ...]


class Compatibility(Resource):
    """The whole file."""

    rules: tuple[Rule, ...]
    install: Mapping[EngineKind, Mapping[str, Recipe]]  # engine -> accelerator
    shim: Shim
    reserved: Mapping[EngineKind, Mapping[str, str]]  # engine -> argument -> why not


@cache
def compatibility() -> Compatibility:
    return Compatibility.model_validate(tomllib.loads(_text()))


@cache
def lines() -> tuple[Line, ...]:
    """Every rule with its line. The file has each on a line of its own."""
    found = [(number, _RULE.match(text)) for number, text in enumerate(_text().splitlines(), start=1)]
    rules = compatibility().rules
    quoted = [(number, match[1]) for number, match in found if match]
    return tuple(Line(number, text, rule) for (number, text), rule in zip(quoted, rules, strict=True))


def _text() -> str:
    return (files("deepinfer") / "configs" / FILE_NAME).read_text()
