"""How large a model's parts are: exact bytes from its files' headers, in the dtype that it is computed in.

What the headers tell is taken from them, the widths of its layers too: a config.json leaves out what is its family's
default. Only what they cannot tell comes from config.json.

Limit: RoPE tables, two of a few hundred bytes on each stage, are not counted; the reserve has room for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deepinfer.fleet.errors import DeepinferError
from deepinfer.fleet.layer_shard_models import ARCHITECTURES, DTYPE_BYTES
from deepinfer.fleet.model_shape import ModelShape
from deepinfer.fleet.safetensors_header import TensorHead

Tensors = Mapping[str, TensorHead]
Config = Mapping[str, Any]

_LAYER = "model.layers."
_OUT = ("self_attn.o_proj", "self_attn.dense")
_DOWN = ("mlp.down_proj", "mlp.fc2")


class CannotBePlanned(DeepinferError):
    """The model is none that layer-shard can compute in stages."""


def model_shape(config: Config, tensors: Tensors, dtype: str = "auto") -> ModelShape:
    """Raises `CannotBePlanned`."""
    architecture = _architecture(config)
    dtype = _dtype(config, dtype)
    number = DTYPE_BYTES[dtype]
    layers = _whole_number(config, "num_hidden_layers")
    tied = config.get("tie_word_embeddings") is True
    parts = _bytes_by_part(tensors, tied, number)
    missing = [layer for layer in range(layers) if not parts.get(str(layer))]
    if missing:
        raise CannotBePlanned(f"The files hold no weights of layer {missing[0]}; fetch the model again.")
    attention, kv = _attention_widths(tensors)
    return ModelShape(
        architecture=architecture,
        dtype=dtype,
        layer_bytes=tuple(parts[str(layer)] for layer in range(layers)),
        embedding_bytes=parts.get("embedding", 0),
        tied=tied,
        head_bytes=parts.get("head", 0),
        norm_bytes=parts.get("norm", 0),
        kv_bytes=2 * kv * number,
        hidden=_whole_number(config, "hidden_size"),
        attention_width=attention,
        mlp_width=_side(tensors, _DOWN, 1),
        vocabulary=_whole_number(config, "vocab_size"),
        longest_context=_longest(config),
        sliding_window=_window(config),
    )


def _architecture(config: Config) -> str:
    names = [str(name) for name in config.get("architectures") or ()]
    known = [name for name in names if name in ARCHITECTURES]
    if not known:
        raise CannotBePlanned(
            f"{', '.join(names) or 'An unnamed architecture'} cannot be cut into stages; layer-shard serves "
            f"{', '.join(ARCHITECTURES)}. Use another engine for this model."
        )
    if config.get("quantization_config"):
        raise CannotBePlanned(
            f"The model is quantised, and layer-shard computes in {', '.join(DTYPE_BYTES)} only; take another."
        )
    return known[0]


def _dtype(config: Config, asked: str) -> str:
    dtype = asked
    if asked == "auto":
        dtype = str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch.")
    if dtype not in DTYPE_BYTES:
        raise CannotBePlanned(f"dtype {dtype} is not supported by layer-shard; use {', '.join(DTYPE_BYTES)}.")
    return dtype


def _bytes_by_part(tensors: Tensors, tied: bool, number: int) -> dict[str, int]:
    """By layer number, and of what lies outside the layers."""
    parts: dict[str, int] = {}
    for name, tensor in tensors.items():
        if (part := _part(name, tied)) is not None:
            size = tensor.elements * number if tensor.is_floating else tensor.stored_bytes
            parts[part] = parts.get(part, 0) + size
    return parts


def _part(name: str, tied: bool) -> str | None:
    """As a stage sorts its tensors; None for what no stage loads."""
    if "rotary_emb.inv_freq" in name:
        return None
    if name.startswith(_LAYER):
        return name.removeprefix(_LAYER).partition(".")[0]
    if ".embed_tokens." in name:
        return "embedding"
    if name.startswith("lm_head."):
        return None if tied else "head"  # some folders store the tied head a second time
    return "norm"


def _attention_widths(tensors: Tensors) -> tuple[int, int]:
    """Of the queries and of the keys. One family has one matrix for queries, keys and values."""
    attention = _side(tensors, _OUT, 1)
    if f"{_LAYER}0.self_attn.k_proj.weight" in tensors:
        return attention, _side(tensors, ("self_attn.k_proj",), 0)
    return attention, (_side(tensors, ("self_attn.qkv_proj",), 0) - attention) // 2


def _side(tensors: Tensors, names: tuple[str, ...], side: int) -> int:
    """Outputs (0) or inputs (1) of a linear layer, by whichever of its names the family has."""
    for name in names:
        tensor = tensors.get(f"{_LAYER}0.{name}.weight")
        if tensor is not None and len(tensor.shape) == 2:
            return tensor.shape[side]
    raise CannotBePlanned(f"The files hold no {_LAYER}0.{names[0]}.weight; fetch the model again.")


def _whole_number(config: Config, name: str) -> int:
    value = config.get(name)
    if type(value) is not int or value < 1:
        raise CannotBePlanned(f"config.json has no {name}; fetch the model again.")
    return value


def _longest(config: Config) -> int:
    """A RoPE that switches its tables at a length is served up to that length, as the engine does."""
    longest = _whole_number(config, "max_position_embeddings")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if (rope.get("rope_type") or rope.get("type")) in ("longrope", "su"):
        original = rope.get("original_max_position_embeddings") or config.get("original_max_position_embeddings")
        return min(longest, int(original or longest))
    return longest


def _window(config: Config) -> int | None:
    window = config.get("sliding_window")
    return window if type(window) is int and config.get("use_sliding_window", True) else None
