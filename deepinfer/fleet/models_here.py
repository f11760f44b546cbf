"""Where this machine keeps the files of models that were fetched before. Nothing is fetched here."""

from __future__ import annotations

import os
from pathlib import Path

from deepinfer.fleet.errors import ModelUnavailable
from deepinfer.fleet.model_folder import check_model_folder
from deepinfer.fleet.model_registry import CarriedByWheel, OnHub, source_of


def model_here(model: str, models: Path) -> Path:
    """The folder of a known name or a Hugging Face id, below `models`. Raises `ModelUnavailable`."""
    match source_of(model):
        case CarriedByWheel(folder=name):
            folder = models / name if (models / name).is_dir() else None
        case OnHub(hub=hub):
            folder = pinned(pin_of(models, hub))
    if folder is None:
        raise ModelUnavailable(f"{model} was not fetched on this machine yet; deploy it here once, or give its folder.")
    return folder


def pin_of(models: Path, hub_id: str) -> Path:
    """The file that says where a hub's model was put."""
    return models / "hub" / hub_id.replace("/", "--")


def pinned(pin: Path) -> Path | None:
    """None if it was never fetched, or somebody emptied the hub's cache."""
    try:
        folder = Path(os.fsdecode(pin.read_bytes()))
        check_model_folder(folder)
    except (FileNotFoundError, ModelUnavailable, ValueError):  # the last: no path at all, so the pin is damaged
        return None
    return folder
