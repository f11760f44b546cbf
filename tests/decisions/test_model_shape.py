"""A model's sizes from what its files' headers say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from deepinfer.fleet.model_shape import ModelShape
from deepinfer.fleet.safetensors_header import TensorHead
from deepinfer.planning.model_shape import CannotBePlanned, model_shape

Shapes = Mapping[str, tuple[int, ...]]

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "vocab_size": 100,
    "max_position_embeddings": 4096,
    "dtype": "bfloat16",
}
LAYER: Shapes = {
    "input_layernorm.weight": (8,),
    "self_attn.q_proj.weight": (12, 8),
    "self_attn.k_proj.weight": (4, 8),
    "self_attn.v_proj.weight": (4, 8),
    "self_attn.o_proj.weight": (8, 12),
    "mlp.gate_proj.weight": (20, 8),
    "mlp.up_proj.weight": (20, 8),
    "mlp.down_proj.weight": (8, 20),
}
OUTSIDE: Shapes = {"model.embed_tokens.weight": (100, 8), "model.norm.weight": (8,), "lm_head.weight": (100, 8)}
LAYER_NUMBERS = 8 + 12 * 8 + 2 * 4 * 8 + 8 * 12 + 3 * 20 * 8


def tensors(dtype: str = "BF16", more: Shapes | None = None) -> dict[str, TensorHead]:
    shapes = {f"model.layers.{number}.{name}": shape for number in range(2) for name, shape in LAYER.items()}
    heads = {}
    for name, shape in {**shapes, **OUTSIDE, **(more or {})}.items():
        head = TensorHead(dtype, shape, 0)
        heads[name] = TensorHead(dtype, shape, head.elements * (4 if dtype == "F32" else 2))
    return heads


def shape_of(asked: str = "auto", stored: str = "BF16", **config: Any) -> ModelShape:
    return model_shape(CONFIG | config, tensors(stored), asked)


def test_parts_are_exact() -> None:
    shape = shape_of()
    assert shape.layer_bytes == (LAYER_NUMBERS * 2,) * 2
    assert (shape.embedding_bytes, shape.head_bytes, shape.norm_bytes) == (1600, 1600, 16)
    assert (shape.kv_bytes, shape.attention_width, shape.mlp_width) == (2 * 4 * 2, 12, 20)
    assert shape.weight_bytes == 2 * 2 * LAYER_NUMBERS + 3216
    assert (shape.dtype, shape.layers, shape.longest_context, shape.sliding_window) == ("bfloat16", 2, 4096, None)


def test_the_dtype_that_is_computed_in_counts() -> None:
    assert shape_of("float32").layer_bytes == (LAYER_NUMBERS * 4,) * 2
    assert shape_of("float32").kv_bytes == 2 * shape_of().kv_bytes
    assert shape_of(stored="F32").layer_bytes == shape_of().layer_bytes  # config.json has the last word
    assert shape_of(dtype=None, torch_dtype="float16").dtype == "float16"  # as older files say it
    assert shape_of(dtype=None).dtype == "float32"


def test_a_tied_head_is_no_weight_of_its_own() -> None:
    shape = shape_of(tie_word_embeddings=True)
    assert (shape.tied, shape.head_bytes, shape.embedding_bytes) == (True, 0, 1600)


def test_layers_may_differ() -> None:
    found = model_shape(CONFIG, tensors(more={"model.layers.1.self_attn.q_proj.bias": (12,)}))
    assert found.layer_bytes[1] - found.layer_bytes[0] == 24


def test_tables_and_layers_beyond_the_model_are_not_loaded() -> None:
    more = {"model.layers.0.self_attn.rotary_emb.inv_freq": (64,), "model.layers.2.mlp.up_proj.weight": (9, 9)}
    assert model_shape(CONFIG, tensors(more=more)) == shape_of()


@pytest.mark.parametrize(
    ("config", "longest", "window"),
    [
        ({"sliding_window": 512}, 4096, 512),
        ({"sliding_window": 512, "use_sliding_window": False}, 4096, None),
        ({"rope_scaling": {"type": "longrope"}, "original_max_position_embeddings": 1024}, 1024, None),
        ({"rope_parameters": {"rope_type": "longrope", "original_max_position_embeddings": 99}}, 99, None),
        ({"rope_parameters": {"rope_type": "yarn", "original_max_position_embeddings": 99}}, 4096, None),
    ],
)
def test_lengths(config: dict[str, Any], longest: int, window: int | None) -> None:
    shape = shape_of(**config)
    assert (shape.longest_context, shape.sliding_window) == (longest, window)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"architectures": ["Gemma2ForCausalLM"]}, "Gemma2ForCausalLM cannot be cut.*Phi3ForCausalLM"),
        ({"architectures": None}, "An unnamed architecture"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised"),
        ({"dtype": "float8_e4m3fn"}, "dtype float8_e4m3fn"),
        ({"hidden_size": None}, "config.json has no hidden_size"),
        ({"num_hidden_layers": 3}, "no weights of layer 2"),
    ],
)
def test_what_cannot_be_planned_is_told(config: dict[str, Any], said: str) -> None:
    with pytest.raises(CannotBePlanned, match=said):
        shape_of(**config)


def test_missing_matrices_are_named() -> None:
    found = tensors()
    del found["model.layers.0.self_attn.k_proj.weight"]
    with pytest.raises(CannotBePlanned, match=r"self_attn\.qkv_proj"):
        model_shape(CONFIG, found)
