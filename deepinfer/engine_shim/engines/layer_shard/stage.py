"""A contiguous range of a model's layers, made of stock transformers modules with only their own weights in memory.

Nothing here knows an architecture's inside: the base model's own `forward` runs, on a config that has just the stage's
layers, so that layer indices and layer types are right by construction. What differs between families is taken from
the modules themselves. The families are listed because each is tested, not because the code branches on them.

Limit: RoPE scalings that switch tables at a length ("longrope", "dynamic") are served up to that length only, because
one step packs long and short sequences into one call.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a model is a folder here; nothing may reach for a hub

import transformers

from deepinfer.engine_shim.engines.layer_shard import attention
from deepinfer.engine_shim.engines.layer_shard.errors import (
    LayerShardError,
    UnreadableWeights,
    UnsupportedArchitecture,
    UnsupportedDtype,
)
from deepinfer.engine_shim.engines.layer_shard.kernels.decode_attention import decode_attention
from deepinfer.engine_shim.engines.layer_shard.kernels.replacement import use_kernels
from deepinfer.engine_shim.engines.layer_shard.kv import KvShape
from deepinfer.engine_shim.engines.layer_shard.weights import StageShape, read_weights
from deepinfer.fleet.layer_shard_models import ARCHITECTURES

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_BUILDING = threading.Lock()  # compiling kernels and transformers' late imports are not made for two threads
_FINAL_NORMS = ("norm", "final_layernorm")

transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Source:
    """Which layers of which folder, and how they are to be held."""

    folder: Path
    layers: range | None = None
    device: str = "cpu"
    dtype: str = "auto"


class Stage:
    """Layers that turn token ids (first stage) or hidden states into hidden states, and at the end into logits."""

    def __init__(self, model: nn.Module, config: Any, shape: StageShape, device: str) -> None:
        self._base: Callable[..., Any] = model.model  # type: ignore[assignment]
        self._head: Callable[[Tensor], Tensor] = model.lm_head  # type: ignore[assignment]
        self.shape = shape
        self.device = device
        self.dtype: torch.dtype = config.dtype
        self.max_model_len = _longest(config)
        self.vocabulary: int = config.vocab_size
        self.width: int = config.hidden_size
        self.weight_bytes = _bytes_of(model)
        self.kv_shape = _kv_shape(config, shape, device)
        self._decode = decode_attention(config.num_attention_heads, self.kv_shape)

    @torch.inference_mode()
    def forward(self, given: Tensor, positions: Tensor, segments: list[attention.Segment]) -> Tensor:
        """Hidden states [token, width] of packed tokens; `given` is token ids on the first stage, else such states."""
        ragged = attention.RaggedBatch(segments, self._decode)
        name = "input_ids" if self.shape.first else "inputs_embeds"
        arguments = {name: given[None], "position_ids": positions[None], "use_cache": False, "ragged": ragged}
        hidden: Tensor = self._base(**arguments).last_hidden_state[0]
        return hidden

    def release(self) -> None:
        """Let go of the weights."""
        del self._base, self._head
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        return self._head(hidden)


def build_stage(source: Source) -> Stage:
    """Read the stage's weights and put them into stock modules. Raises a `LayerShardError`."""
    with _BUILDING:
        return _built(source)


def _built(source: Source) -> Stage:
    config = _config(source.folder)
    shape = _shape(config, source.layers)
    config.dtype = _dtype(source.dtype, config)
    config.num_hidden_layers = len(shape.layers)
    if getattr(config, "layer_types", None) is not None:
        config.layer_types = list(config.layer_types)[shape.layers.start : shape.layers.stop]
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            config, dtype=config.dtype, attn_implementation=attention.NAME
        )
    _leave_out_what_others_own(model, shape)
    _load(model, read_weights(source.folder, shape, config.dtype, source.device), shape)
    _rebuild_unsaved_buffers(model, config, source.device)
    model.eval()
    use_kernels(model, config.dtype, source.device)
    return Stage(model, config, shape, source.device)


def end_token_ids(folder: Path) -> tuple[int, ...]:
    """The ids that end an answer: the generation config's, or else the model config's."""
    for read in (transformers.GenerationConfig.from_pretrained, _config):
        try:
            ids = read(folder).eos_token_id
        except OSError:
            continue
        if ids is not None:
            return tuple(ids) if isinstance(ids, Sequence) else (ids,)
    return ()


def _config(folder: Path) -> Any:
    try:
        config = transformers.AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise UnreadableWeights(f"{folder} has no readable config.json ({error}); fetch the model again.") from error
    names = config.architectures or ()
    if not any(name in ARCHITECTURES for name in names):
        raise UnsupportedArchitecture(
            f"{', '.join(names) or 'An unnamed architecture'} is not supported by layer-shard; "
            f"it serves {', '.join(ARCHITECTURES)}. Use another engine for this model."
        )
    return config


def _shape(config: Any, layers: range | None) -> StageShape:
    count = config.num_hidden_layers
    layers = range(count) if layers is None else layers
    if layers.step != 1 or not 0 <= layers.start < layers.stop <= count:
        raise LayerShardError(
            f"Layers {layers} are no contiguous part of the model's {count}; choose within 0..{count}."
        )
    return StageShape(layers, count, bool(config.tie_word_embeddings))


def _dtype(name: str, config: Any) -> torch.dtype:
    if name == "auto":
        stored = config.dtype or torch.float32
        name = str(stored).removeprefix("torch.")
    if name not in DTYPES:
        raise UnsupportedDtype(f"dtype {name} is not supported by layer-shard; use auto, {', '.join(DTYPES)}.")
    return DTYPES[name]


def _leave_out_what_others_own(model: Any, shape: StageShape) -> None:
    if not shape.has_embedding:
        model.model.embed_tokens = None
    if shape.last:
        return
    model.lm_head = None
    for name in _FINAL_NORMS:
        if hasattr(model.model, name):
            setattr(model.model, name, nn.Identity())


def _load(model: Any, weights: dict[str, Tensor], shape: StageShape) -> None:
    missing, unexpected = model.load_state_dict(weights, strict=False, assign=True)
    if shape.last and shape.tied:
        model.lm_head.weight = model.model.embed_tokens.weight
        missing = [key for key in missing if key != "lm_head.weight"]
    if missing or unexpected:
        raise UnreadableWeights(
            f"The weights do not fit config.json: missing {missing[:3]}, unexpected {unexpected[:3]}; fetch them again."
        )


def _rebuild_unsaved_buffers(model: Any, config: Any, device: str) -> None:
    """RoPE tables are computed, not stored: on the meta device they have no numbers, so their module is made anew."""
    for name, module in list(model.named_modules()):
        if any(buffer.is_meta for buffer in module.buffers(recurse=False)):
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, type(module)(config=config).to(device))


def _longest(config: Any) -> int:
    longest: int = config.max_position_embeddings
    rope = config.rope_parameters or {}
    if rope.get("rope_type") == "longrope":
        original = rope.get("original_max_position_embeddings") or getattr(
            config, "original_max_position_embeddings", None
        )
        return min(longest, int(original or longest))
    return longest


def _kv_shape(config: Any, shape: StageShape, device: str) -> KvShape:
    heads = config.num_attention_heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return KvShape(len(shape.layers), groups, size, config.dtype, device)


def _bytes_of(model: nn.Module) -> int:
    held = {tensor.data_ptr(): tensor.nbytes for tensor in [*model.parameters(), *model.buffers()]}
    return sum(held.values())  # a tied tensor counts once
