"""What the planner says of a model is what the engine's stages then hold, for every architecture."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from deepinfer.engine_shim.engines.layer_shard import stage as stages
from deepinfer.engine_shim.engines.layer_shard.attention import Segment
from deepinfer.engine_shim.engines.layer_shard.kv import KvSlab
from deepinfer.engine_shim.engines.layer_shard.options import Options
from deepinfer.engine_shim.engines.layer_shard.sampling import Row, choose
from deepinfer.engine_shim.engines.layer_shard.schedule import BLOCK
from deepinfer.engine_shim.engines.layer_shard.stage import Source, build_stage
from deepinfer.engine_shim.token_engine import SamplingParams
from deepinfer.fleet.layer_shard_models import DTYPE_BYTES
from deepinfer.planning.memory import Memory
from deepinfer.planning.model_files import shape_of_folder
from deepinfer.planning.model_shape import CannotBePlanned
from deepinfer.planning.task import KV_BLOCK, STEP_TOKENS
from tests.planning_values import devices, task

CUTS = ((range(7),), (range(2), range(2, 5), range(5, 7)), (range(6), range(6, 7)))
STEP = 96  # tokens
CONTEXT = 2 * STEP
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


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """How many bytes of tensors made inside the block were alive at most."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most = 0
        self._alive: dict[int, int] = {}

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        given = {id_of(tensor) for tensor in tensors_in((arguments, options))}
        made = function(*arguments, **(options or {}))
        for tensor in tensors_in(made):
            storage = tensor.untyped_storage()
            if id_of(tensor) not in given | self._alive.keys():
                self._alive[id_of(tensor)] = storage.nbytes()
                weakref.finalize(storage, self._alive.pop, id_of(tensor), None)
        self.most = max(self.most, sum(self._alive.values()))
        return made


def tensors_in(values: Any) -> list[torch.Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, torch.Tensor)]


def id_of(tensor: torch.Tensor) -> int:
    storage: int = tensor.untyped_storage()._cdata  # a view has its whole's
    return storage


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("start", [0, STEP])
def test_a_step_takes_no_more_than_was_planned(
    family: str, dtype: torch.dtype, start: int, tiny_model: Callable[..., Path]
) -> None:
    """A prompt's first tokens, and those of a long one that see earlier ones."""
    folder = tiny_model(family, dtype)
    asked = {"context": start + STEP, "concurrency": 2, "step_tokens": STEP}
    planned = Memory(task(shape_of_folder(folder), devices(1), **asked)).need(2, 3).working
    stage = build_stage(Source(folder, layers=range(2, 3)))
    slab = KvSlab(stage.kv_shape, CONTEXT)
    given, positions = torch.randn(STEP, 64).to(dtype), torch.arange(start, start + STEP)
    with LiveBytes() as live:
        stage.forward(given, positions, [Segment(slab, start, STEP)])
    assert live.most <= planned <= 3 * live.most


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_choosing_tokens_takes_no_more_than_was_planned(dtype: torch.dtype, tiny_model: Callable[..., Path]) -> None:
    folder, requests = tiny_model("llama", dtype), 16
    asked = {"concurrency": requests, "step_tokens": requests}
    planned = Memory(task(shape_of_folder(folder), devices(1), **asked)).need(6, 7).working
    stage = build_stage(Source(folder, layers=range(6, 7)))
    hidden = torch.randn(requests, 64).to(dtype)
    sampling = SamplingParams(max_tokens=1, temperature=0.8, top_k=40, top_p=0.9, min_p=0.01)
    rows = [Row(sampling, (), (), (), seed=number, drawn=0) for number in range(requests)]
    with LiveBytes() as live:
        choose(stage.logits(hidden), rows)
    assert live.most <= planned <= 2 * live.most
