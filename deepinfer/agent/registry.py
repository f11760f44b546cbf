"""The names `deepinfer deploy NAME` knows: packaged data, one entry a model."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from importlib.resources import files

from deepinfer.fleet.resource import Name, Resource


class CarriedByWheel(Resource):
    """A GGUF file inside a wheel of the package index: needs no hub."""

    wheel: str  # a requirement with its exact version
    file: str  # inside the wheel
    folder: Name  # of the converted model


class OnHub(Resource):
    hub: str


Source = CarriedByWheel | OnHub


def registry() -> Mapping[str, Source]:
    """Read anew each time: it is one small file, and a model is resolved rarely."""
    entries = tomllib.loads((files("deepinfer") / "configs" / "models.toml").read_text())
    return {name: _source({k: v for k, v in entry.items() if k != "description"}) for name, entry in entries.items()}


def _source(fields: Mapping[str, str]) -> Source:
    return OnHub.model_validate(fields) if "hub" in fields else CarriedByWheel.model_validate(fields)
