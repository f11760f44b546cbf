"""Which tensors of a safetensors folder a stage needs, and reading only those.

A stage owns layers `range(a, b)`; the first also owns the embedding, the last the final norm and the head. A head tied
to the embedding makes the last stage read the embedding too.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from deepinfer.engine_shim.engines.layer_shard.errors import UnreadableWeights

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_LAYER = "model.layers."


@dataclass(frozen=True)
class StageShape:
    """A contiguous range of a model's layers."""

    layers: range
    layers_of_model: int
    tied: bool

    @property
    def first(self) -> bool:
        return self.layers.start == 0

    @property
    def last(self) -> bool:
        return self.layers.stop == self.layers_of_model

    @property
    def has_embedding(self) -> bool:
        return self.first or (self.last and self.tied)

    def name_here(self, key: str) -> str | None:
        """The tensor's name inside the stage, whose layers count from 0; None when another stage owns it."""
        if key.startswith(_LAYER):
            number, _, rest = key.removeprefix(_LAYER).partition(".")
            return f"{_LAYER}{int(number) - self.layers.start}.{rest}" if int(number) in self.layers else None
        if ".embed_tokens." in key:
            return key if self.has_embedding else None
        if key.startswith("lm_head.") and self.tied:
            return None  # some folders store the tied head a second time
        return key if self.last else None


def read_weights(folder: Path, shape: StageShape, dtype: torch.dtype, device: str) -> dict[str, Tensor]:
    """The stage's tensors under their names in the stage. Floating-point ones come as `dtype`."""
    weights: dict[str, Tensor] = {}
    for file, keys in _keys_by_file(folder, shape).items():
        for key, tensor in _read(folder / file, keys):
            name = shape.name_here(key) or key
            weights[name] = tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None)
    return weights


def _keys_by_file(folder: Path, shape: StageShape) -> Mapping[str, list[str]]:
    by_file: dict[str, list[str]] = defaultdict(list)
    for key, file in _files_of_keys(folder).items():
        if "rotary_emb.inv_freq" not in key and shape.name_here(key) is not None:
            by_file[file].append(key)
    return by_file


def _files_of_keys(folder: Path) -> dict[str, str]:
    if (folder / INDEX).is_file():
        try:
            index: dict[str, str] = json.loads((folder / INDEX).read_bytes())["weight_map"]
        except (ValueError, KeyError) as error:
            raise UnreadableWeights(f"{folder / INDEX} is not an index of weights: {error}; fetch it again.") from error
        return index
    if not (folder / SINGLE).is_file():
        raise UnreadableWeights(f"{folder} has neither {SINGLE} nor {INDEX}; give a folder with safetensors weights.")
    return dict.fromkeys((key for key, _ in _read(folder / SINGLE, None)), SINGLE)


def _read(path: Path, keys: Iterable[str] | None) -> Iterable[tuple[str, Tensor]]:
    """The named tensors of one file; with None, all names and no data."""
    try:
        with safe_open(path, framework="pt") as file:
            for key in file.keys() if keys is None else keys:
                yield key, torch.empty(0) if keys is None else file.get_tensor(key)
    except (SafetensorError, OSError) as error:
        raise UnreadableWeights(f"{path} cannot be read ({error}); fetch the model again.") from error
