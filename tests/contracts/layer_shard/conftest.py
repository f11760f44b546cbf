"""Small random models of every architecture, saved as real folders, and engines that serve them."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from deepinfer.engine_shim.engines.layer_shard.engine import LayerShardEngine
from deepinfer.engine_shim.engines.layer_shard.options import Options
from deepinfer.engine_shim.token_engine import SamplingParams, TokenRequest
from tests import avx2_torch

NATIVE = "DEEPINFER_TEST_NATIVE_TORCH"  # set in a child, where torch is to use all this CPU has

os.environ["HF_HUB_OFFLINE"] = "1"
if NATIVE not in os.environ:
    avx2_torch.hold_this_process()
transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]

SIZES: dict[str, Any] = {
    "vocab_size": 257,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3_ROPE: dict[str, Any] = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
CONFIGS: dict[str, Callable[[], transformers.PreTrainedConfig]] = {
    "llama": lambda: transformers.LlamaConfig(**SIZES),
    "llama-tied": lambda: transformers.LlamaConfig(**SIZES, tie_word_embeddings=True),
    "llama-rope3": lambda: transformers.LlamaConfig(**SIZES, rope_parameters=LLAMA3_ROPE),
    "mistral": lambda: transformers.MistralConfig(**SIZES, sliding_window=None),
    "mistral-window": lambda: transformers.MistralConfig(**SIZES, sliding_window=8),
    "qwen2": lambda: transformers.Qwen2Config(**SIZES),
    "qwen2-window": lambda: transformers.Qwen2Config(
        **SIZES, use_sliding_window=True, sliding_window=8, max_window_layers=3
    ),
    "qwen3": lambda: transformers.Qwen3Config(**SIZES, head_dim=16),
    "phi": lambda: transformers.PhiConfig(**SIZES),
    "phi3": lambda: transformers.Phi3Config(**SIZES, sliding_window=None),
    "phi3-window": lambda: transformers.Phi3Config(**SIZES, sliding_window=8),
}

TinyModel = Callable[..., Path]
Serve = Callable[..., AbstractAsyncContextManager[LayerShardEngine]]


@pytest.fixture(scope="session", params=list(CONFIGS))
def family(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """`tiny_model(name, dtype)`: the folder of a seeded random model, made once."""
    made: dict[tuple[str, torch.dtype], Path] = {}

    def folder(name: str, dtype: torch.dtype = torch.float32) -> Path:
        if (name, dtype) not in made:
            made[name, dtype] = tmp_path_factory.mktemp(name)
            torch.manual_seed(0)
            model = transformers.AutoModelForCausalLM.from_config(CONFIGS[name]())  # type: ignore[no-untyped-call]
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.dim() > 1:
                        parameter.mul_(3.0)  # livelier than at initialisation: answers that do not repeat themselves
            model.to(dtype).save_pretrained(made[name, dtype], max_shard_size="100KB")
        return made[name, dtype]

    return folder


@pytest.fixture
def serve() -> Serve:
    """`serve(folder, max_num_seqs=4)`: an engine, closed at the end of the block."""

    @asynccontextmanager
    async def serving(folder: Path, **options: int) -> AsyncIterator[LayerShardEngine]:
        engine = LayerShardEngine.from_folder(folder, Options(**options))  # type: ignore[arg-type]
        try:
            yield engine
        finally:
            await engine.close()

    return serving


async def answer_of(engine: LayerShardEngine, prompt: list[int], sampling: SamplingParams) -> list[int]:
    deltas = engine.generate(TokenRequest("request", tuple(prompt), sampling))
    return [token async for delta in deltas for token in delta.token_ids]


@pytest.fixture
def answer() -> Callable[[LayerShardEngine, list[int], SamplingParams], object]:
    return answer_of


def transformers_answer(model: Any, prompt: list[int], count: int) -> list[int]:
    """What `generate` says, greedily and without stopping."""
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        made = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=count,
            min_new_tokens=count,
            eos_token_id=None,
        )
    answer: list[int] = made[0, len(prompt) :].tolist()
    return answer


@pytest.fixture
def reference() -> Callable[[Path, list[list[int]], int], list[list[int]]]:
    """`reference(folder, prompts, count)`: transformers' own greedy answers, one prompt at a time."""

    def answers(folder: Path, prompts: list[list[int]], count: int) -> list[list[int]]:
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
        return [transformers_answer(model, prompt, count) for prompt in prompts]

    return answers


@pytest.fixture
def prompts() -> list[list[int]]:
    torch.manual_seed(1)
    return [torch.randint(3, 257, (length,)).tolist() for length in (5, 17, 9, 1, 40)]
