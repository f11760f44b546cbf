"""Every architecture answers as transformers does, batched or alone, whole or cut into stages."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from deepinfer.engine_shim.engines.layer_shard.attention import Segment
from deepinfer.engine_shim.engines.layer_shard.engine import LayerShardEngine
from deepinfer.engine_shim.engines.layer_shard.errors import LayerShardError, UnreadableWeights, UnsupportedArchitecture
from deepinfer.engine_shim.engines.layer_shard.kv import KvSlab
from deepinfer.engine_shim.engines.layer_shard.stage import Source, Stage, build_stage
from deepinfer.engine_shim.token_engine import SamplingParams, TokenRequest

NEW = 14
GREEDY = SamplingParams(max_tokens=NEW, temperature=0, ignore_eos=True)
CUTS = (range(2), range(2, 5), range(5, 7))


async def joining_one_after_another(engine: LayerShardEngine, prompts: list[list[int]]) -> list[list[int]]:
    """Each request starts when the one before has its second token, so that prompts meet answers in a step."""
    answers: list[list[int]] = [[] for _ in prompts]
    may_start = [asyncio.Event() for _ in [*prompts, None]]
    may_start[0].set()

    async def ask(number: int) -> None:
        await may_start[number].wait()
        async for delta in engine.generate(TokenRequest(str(number), tuple(prompts[number]), GREEDY)):
            answers[number] += delta.token_ids
            if len(answers[number]) == 2:
                may_start[number + 1].set()

    async with asyncio.TaskGroup() as tasks:
        for number in range(len(prompts)):
            tasks.create_task(ask(number))
    return answers


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
async def test_requests_that_share_steps_are_answered_as_transformers_answers_each_alone(
    family: str,
    dtype: torch.dtype,
    tiny_model: Callable[..., Path],
    serve: Callable[..., Any],
    reference: Callable[..., list[list[int]]],
    prompts: list[list[int]],
) -> None:
    folder = tiny_model(family, dtype)
    async with serve(folder) as engine:
        assert await joining_one_after_another(engine, prompts) == reference(folder, prompts, NEW)


def logits_of(stages: list[Stage], prompt: list[int]) -> list[torch.Tensor]:
    """The logits of a prompt and of four tokens after it, through all stages."""
    slabs = [KvSlab(stage.kv_shape, 64) for stage in stages]
    given, start, logits = torch.tensor(prompt), 0, []
    for _ in range(5):
        positions, passed = torch.arange(start, start + len(given)), given
        for stage, slab in zip(stages, slabs, strict=True):
            passed = stage.forward(passed, positions, [Segment(slab, start, len(given))])
        logits.append(stages[-1].logits(passed))
        start, given = start + len(given), logits[-1][-1:].argmax(-1)
    return logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_stages_compute_the_very_bits_of_the_whole(
    family: str, dtype: torch.dtype, tiny_model: Callable[..., Path], prompts: list[list[int]]
) -> None:
    folder = tiny_model(family, dtype)
    whole = logits_of([build_stage(Source(folder))], prompts[1])
    cut = logits_of([build_stage(Source(folder, layers=layers)) for layers in CUTS], prompts[1])
    assert all(torch.equal(a, b) for a, b in zip(whole, cut, strict=True))


def test_a_stage_holds_only_its_layers(tiny_model: Callable[..., Path]) -> None:
    whole = build_stage(Source(tiny_model("llama"))).weight_bytes
    parts = [build_stage(Source(tiny_model("llama"), layers=layers)).weight_bytes for layers in CUTS]
    tables = 2 * (len(CUTS) - 1) * 8 * 4  # each stage has its own two tables of RoPE frequencies
    assert sum(parts) == whole + tables


def test_an_engine_of_some_layers_only_is_refused(tiny_model: Callable[..., Path]) -> None:
    from deepinfer.engine_shim.engines.layer_shard.options import Options

    with pytest.raises(LayerShardError, match="must hold all layers"):
        LayerShardEngine.from_folder(tiny_model("llama"), Options(layers=range(2)))


def test_another_architecture_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma2", "architectures": ["Gemma2ForCausalLM"]}))
    with pytest.raises(UnsupportedArchitecture, match=r"Gemma2ForCausalLM.*LlamaForCausalLM.*Phi3ForCausalLM"):
        build_stage(Source(tmp_path))


@pytest.fixture
def copied(tiny_model: Callable[..., Path], tmp_path: Path) -> Path:
    for file in tiny_model("llama").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def test_a_truncated_file_is_named(copied: Path) -> None:
    broken = sorted(copied.glob("*.safetensors"))[0]
    broken.write_bytes(broken.read_bytes()[:-100])
    with pytest.raises(UnreadableWeights, match=broken.name):
        build_stage(Source(copied))


def test_missing_weights_are_named(copied: Path) -> None:
    index = json.loads((copied / "model.safetensors.index.json").read_text())
    del index["weight_map"]["model.layers.3.mlp.up_proj.weight"]
    (copied / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UnreadableWeights, match=r"layers\.3\.mlp\.up_proj"):
        build_stage(Source(copied))


def test_a_folder_without_weights_is_refused(copied: Path) -> None:
    for file in copied.glob("model*"):
        file.unlink()
    with pytest.raises(UnreadableWeights, match="safetensors"):
        build_stage(Source(copied))


def test_an_unknown_dtype_is_refused(tiny_model: Callable[..., Path]) -> None:
    with pytest.raises(LayerShardError, match="int4"):
        build_stage(Source(tiny_model("llama"), dtype="int4"))
