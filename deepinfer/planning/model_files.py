"""A model's shape from its folder. Reads config.json and headers, and no weights."""

from __future__ import annotations

from pathlib import Path

from deepinfer.fleet.model_folder import config_of, tensors_in
from deepinfer.fleet.model_shape import ModelShape
from deepinfer.planning.model_shape import model_shape


def shape_of_folder(folder: Path, dtype: str = "auto") -> ModelShape:
    """Raises `CannotBePlanned`, or what is wrong with the folder (`ModelUnavailable`)."""
    tensors = tensors_in(folder)
    return model_shape(config_of(folder), tensors, dtype)
