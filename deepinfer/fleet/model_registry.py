"""The names `deepinfer deploy NAME` knows: packaged data, one entry a model."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping
from importlib.resources import files

from deepinfer.fleet.errors import ModelUnavailable
from deepinfer.fleet.resource import Name, Resource

_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")


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


def source_of(model: str) -> Source:
    """What a deployment's model means. Raises `ModelUnavailable`."""
    known = registry()
    if model in known:
        return known[model]
    if _HUB_ID.fullmatch(model):
        return OnHub(hub=model)
    near = difflib.get_close_matches(model, known, n=1)
    raise ModelUnavailable(
        f'"{model}" is neither a known name ({", ".join(known)}) nor a Hugging Face id (org/name)'
        + (f"; did you mean {near[0]}?" if near else "; or give model_path.")
    )


def _source(fields: Mapping[str, str]) -> Source:
    return OnHub.model_validate(fields) if "hub" in fields else CarriedByWheel.model_validate(fields)
