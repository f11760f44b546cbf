"""What the planner says of a model is what the engine's stages then hold, for every architecture."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from deepinfer.engine_shim.engines.layer_shard import stage as stages
from deepinfer.engine_shim.engines.layer_shard.options import Options
from deepinfer.engine_shim.engines.layer_shard.schedule import BLOCK
from deepinfer.engine_shim.engines.layer_shard.stage import Source, build_stage
from deepinfer.fleet.layer_shard_models import DTYPE_BYTES
from deepinfer.planning.memory import Memory
from deepinfer.planning.model_files import shape_of_folder
from deepinfer.planning.model_shape import CannotBePlanned
from deepinfer.planning.task import KV_BLOCK, STEP_TOKENS
from tests.planning_values import devices, task

CUTS = ((range(7),), (range(2), range(2, 5), range(5, 7)), (range(6), range(6, 7)))
MOST_TABLES = 2 * 8 * 4  # bytes: RoPE frequencies, of 16 numbers a head


@pytest.mark.parametrize(
    ("stored", "dtype"), [(torch.float32, "auto"), (torch.bfloat16, "auto"), (torch.bfloat16, "float32")]
)
def test_a_stage_holds_the_bytes_that_were_planned(
    family: str, stored: torch.dtype, dtype: str, tiny_model: Callable[..., Path]
) -> None:
    folder = tiny_model(family, stored)
    shape = shape_of_folder(folder, dtype)
    memory = Memory(task(shape, devices(1)))
    for layers in itertools.chain.from_iterable(CUTS):
        stage = build_stage(Source(folder, layers=layers, dtype=dtype))
        tables = stage.weight_bytes - memory.weights(layers.start, layers.stop)
        assert 0 <= tables <= MOST_TABLES
        assert stage.kv_shape.bytes_per_token == shape.kv_bytes * len(layers)
        assert (stage.max_model_len, stage.vocabulary) == (shape.longest_context, shape.vocabulary)
    assert shape.longest_context == 256


def test_planner_and_engine_share_their_numbers() -> None:
    assert KV_BLOCK == BLOCK
    assert Options().max_num_batched_tokens == STEP_TOKENS
    assert {name: dtype.itemsize for name, dtype in stages.DTYPES.items()} == DTYPE_BYTES


def test_another_architecture_is_refused_by_name(tmp_path: Path, tiny_model: Callable[..., Path]) -> None:
    for file in tiny_model("llama").iterdir():
        text = file.read_bytes()
        (tmp_path / file.name).write_bytes(text.replace(b"LlamaForCausalLM", b"GemmaForCausalLM"))
    with pytest.raises(CannotBePlanned, match=r"GemmaForCausalLM.*LlamaForCausalLM.*Phi3ForCausalLM"):
        shape_of_folder(tmp_path)
