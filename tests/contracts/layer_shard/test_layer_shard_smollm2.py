"""A real model, SmolLM2-135M-Instruct in bf16: made from its GGUF, served, and compared with transformers' answers.

Where the model cannot be had these tests are errors, never skipped.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers

from deepinfer.agent.models import Models
from deepinfer.engine_shim.engines.layer_shard.engine import LayerShardEngine
from deepinfer.engine_shim.engines.layer_shard.gguf_import import GgufImportError, import_gguf
from deepinfer.engine_shim.token_engine import SamplingParams, TokenRequest
from deepinfer.fleet.places import cache_dir
from deepinfer.fleet.spec import DeploymentSpec, EngineKind

QUESTIONS = (
    "What is the capital of France?",
    "Write a haiku about the sea.",
    "Why is the sky blue?",
    "How do I sort a list in Python?",
    "Tell me a joke.",
    "What should I pack for a week of hiking in the Alps in September?",
    "Translate 'good morning' to Spanish.",
    "List five fruits.",
)


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """As an agent gets it: out of its wheel, converted once, in the user's cache."""
    models = Models(cache_dir() / "models", os.environ)
    folder = asyncio.run(models.files(DeploymentSpec(model="smollm2", engine=EngineKind.LAYER_SHARD), print))
    assert folder is not None
    return folder


async def test_eight_at_once_are_answered_as_transformers_answers_each(
    smollm2: Path,
    serve: Callable[..., Any],
    answer: Callable[..., Any],
    reference: Callable[[Path, list[list[int]], int], list[list[int]]],
) -> None:
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(smollm2)
    chats = [[{"role": "user", "content": question}] for question in QUESTIONS]
    prompts = [tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"] for chat in chats]
    greedy = SamplingParams(max_tokens=24, temperature=0, ignore_eos=True)
    async with serve(smollm2) as engine:
        answers = await asyncio.gather(*[answer(engine, prompt, greedy) for prompt in prompts])
    assert answers == reference(smollm2, prompts, 24)
    assert tokenizer.decode(answers[0]).startswith("The capital of France is Paris.")


async def test_an_answer_that_was_begun_elsewhere_goes_on_as_it_would_have(
    smollm2: Path, serve: Callable[..., Any], answer: Callable[..., Any]
) -> None:
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(smollm2)
    prompts = [tokenizer(question)["input_ids"] for question in QUESTIONS]
    greedy = SamplingParams(max_tokens=40, temperature=0, ignore_eos=True)

    async def rest(engine: LayerShardEngine, prompt: list[int], begun: list[int]) -> list[int]:
        sampling = SamplingParams(max_tokens=40 - len(begun), temperature=0, ignore_eos=True)
        deltas = engine.generate(TokenRequest("rest", (*prompt, *begun), sampling, generated=len(begun)))
        return [token async for delta in deltas for token in delta.token_ids]

    async with serve(smollm2) as engine:
        whole = await asyncio.gather(*[answer(engine, prompt, greedy) for prompt in prompts])
        pairs = list(zip(prompts, whole, strict=True))
        for told in (1, 9, 25):
            rests = await asyncio.gather(*[rest(engine, prompt, made[:told]) for prompt, made in pairs])
            assert rests == [made[told:] for made in whole]


def test_the_converted_folder_is_an_ordinary_model(smollm2: Path) -> None:
    config = transformers.AutoConfig.from_pretrained(smollm2)
    assert (config.model_type, str(config.dtype)) == ("llama", "torch.bfloat16")
    assert transformers.GenerationConfig.from_pretrained(smollm2).eos_token_id == 2
    assert transformers.AutoTokenizer.from_pretrained(smollm2).chat_template
    assert len(list(smollm2.glob("*.safetensors"))) == 3


def test_a_conversion_that_fails_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(GgufImportError, match=r"broken\.gguf"):
        import_gguf(tmp_path / "broken.gguf", tmp_path / "models" / "made")
    assert list((tmp_path / "models").iterdir()) == []


def test_the_command_says_what_is_wrong(tmp_path: Path) -> None:
    module = "deepinfer.engine_shim.engines.layer_shard.gguf_import"
    command = [sys.executable, "-m", module, str(tmp_path / "none.gguf"), str(tmp_path / "made")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "none.gguf" in done.stderr
    assert "Traceback" not in done.stderr
