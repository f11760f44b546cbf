"""Tasks of planning: a model whose parts have round numbers, and devices by their gigabytes."""

from __future__ import annotations

from typing import Any

from deepinfer.fleet.model_shape import ModelShape
from deepinfer.planning.task import OfferedDevice, Task

GB = 10**9


def model(*layer_bytes: int, **changes: Any) -> ModelShape:
    """By default nothing but layers takes memory."""
    fields = {
        "architecture": "LlamaForCausalLM",
        "dtype": "bfloat16",
        "layer_bytes": layer_bytes,
        "embedding_bytes": 0,
        "tied": False,
        "head_bytes": 0,
        "norm_bytes": 0,
        "kv_bytes": 0,
        "hidden": 0,
        "attention_width": 0,
        "mlp_width": 0,
        "vocabulary": 0,
        "longest_context": 131_072,
    }
    return ModelShape.model_validate(fields | changes)


def llama_8b(**changes: Any) -> ModelShape:
    """Llama-3.1-8B, whose 32 layers are equal."""
    fields = {
        "embedding_bytes": 128_256 * 4096 * 2,
        "head_bytes": 128_256 * 4096 * 2,
        "norm_bytes": 4096 * 2,
        "kv_bytes": 4096,
        "hidden": 4096,
        "attention_width": 4096,
        "mlp_width": 14_336,
        "vocabulary": 128_256,
    }
    return model(*[436_224_000] * 32, **(fields | changes))


def devices(*gigabytes: float, **told: Any) -> tuple[OfferedDevice, ...]:
    """Called a, b, c …; what is told is told of each."""
    return tuple(
        OfferedDevice(name=chr(ord("a") + number), memory_bytes=int(size * GB), **told)
        for number, size in enumerate(gigabytes)
    )


def task(shape: ModelShape, offered: tuple[OfferedDevice, ...], **asked: Any) -> Task:
    return Task.model_validate(
        {"model": shape, "devices": offered, "context": 16, "concurrency": 1, "reserve_bytes": 0} | asked
    )
