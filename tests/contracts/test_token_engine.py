"""What every engine that makes tokens does, whatever computes: one set of tests, run on each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import transformers

from deepinfer.engine_shim.engine_args import SimArgs
from deepinfer.engine_shim.engines.layer_shard.engine import LayerShardEngine
from deepinfer.engine_shim.engines.layer_shard.options import Options
from deepinfer.engine_shim.engines.sim import SimEngine
from deepinfer.engine_shim.text.byte_tokenizer import ByteTokenizer
from deepinfer.engine_shim.token_engine import (
    ContextTooLong,
    FinishReason,
    SamplingParams,
    TokenDelta,
    TokenEngine,
    TokenRequest,
)

PROMPT = tuple(range(65, 105))
LIMIT = 128


@pytest.fixture(scope="module")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=259,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=LIMIT,
        eos_token_id=258,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(params=["sim", "layer-shard"])
async def engine(request: pytest.FixtureRequest, tiny_llama: Path) -> AsyncIterator[TokenEngine]:
    engine: TokenEngine
    if request.param == "sim":
        args = SimArgs(seconds_per_output_token=0.0005, max_num_seqs=4, kv_blocks=64)
        engine = SimEngine("tiny", ByteTokenizer(), args, LIMIT)
    else:
        options = Options(max_num_seqs=4, threads=1)
        engine = await asyncio.to_thread(LayerShardEngine.from_folder, tiny_llama, options)
    yield engine
    await engine.close()


def deltas_of(
    engine: TokenEngine, prompt: tuple[int, ...] = PROMPT, **sampling: Any
) -> aclosing[AsyncGenerator[TokenDelta, None]]:
    params = SamplingParams(**{"max_tokens": 8, "temperature": 0.0} | sampling)
    return aclosing(cast(AsyncGenerator[TokenDelta, None], engine.generate(TokenRequest("r", prompt, params))))


async def answer(engine: TokenEngine, prompt: tuple[int, ...] = PROMPT, **sampling: Any) -> list[TokenDelta]:
    async with deltas_of(engine, prompt, **sampling) as deltas:
        return [delta async for delta in deltas]


def tokens_of(deltas: list[TokenDelta]) -> list[int]:
    return [token for delta in deltas for token in delta.token_ids]


async def test_it_makes_as_many_tokens_as_asked_and_says_why_it_ended(engine: TokenEngine) -> None:
    deltas = await answer(engine, ignore_eos=True)
    assert len(tokens_of(deltas)) == 8
    assert [delta.finish_reason for delta in deltas if delta.finish_reason] == [FinishReason.LENGTH]
    assert deltas[-1].finish_reason is FinishReason.LENGTH


async def test_greedy_answers_do_not_depend_on_company(engine: TokenEngine) -> None:
    prompts = [tuple(range(40 + start, 60 + 2 * start)) for start in range(12)]  # more than fit into a batch
    alone = [tokens_of(await answer(engine, prompt)) for prompt in prompts]
    together = await asyncio.gather(*(answer(engine, prompt) for prompt in prompts))
    assert [tokens_of(deltas) for deltas in together] == alone


async def test_it_ends_after_a_stop_token(engine: TokenEngine) -> None:
    tokens = tokens_of(await answer(engine, ignore_eos=True))
    stop = tokens[4]
    deltas = await answer(engine, ignore_eos=True, stop_token_ids=(stop,))
    assert tokens_of(deltas) == tokens[: tokens.index(stop) + 1]
    assert deltas[-1].finish_reason is FinishReason.STOP


async def test_it_does_not_stop_before_min_tokens(engine: TokenEngine) -> None:
    stop = tokens_of(await answer(engine, ignore_eos=True))[0]
    deltas = await answer(engine, stop_token_ids=(stop,), min_tokens=6)
    assert len(tokens_of(deltas)) >= 6


async def test_it_refuses_a_prompt_that_does_not_fit(engine: TokenEngine) -> None:
    assert engine.info.max_model_len == LIMIT
    with pytest.raises(ContextTooLong) as refused:
        await answer(engine, (65,) * LIMIT)
    assert (refused.value.prompt_tokens, refused.value.max_model_len) == (LIMIT, LIMIT)


async def test_it_ends_where_the_context_ends(engine: TokenEngine) -> None:
    deltas = await answer(engine, (65,) * (LIMIT - 3), max_tokens=50, ignore_eos=True)
    assert len(tokens_of(deltas)) == 3
    assert deltas[-1].finish_reason is FinishReason.LENGTH


async def test_logprobs_come_with_every_token_if_wanted(engine: TokenEngine) -> None:
    deltas = await answer(engine, logprobs=3)
    entries = [entry for delta in deltas for entry in delta.logprobs]
    assert [entry.token_id for entry in entries] == tokens_of(deltas)
    for entry in entries:
        assert len(entry.top) == 3
        assert entry.top[0] == (entry.token_id, entry.logprob)  # greedy
        assert [logprob for _, logprob in entry.top] == sorted((lp for _, lp in entry.top), reverse=True)
    assert not any(delta.logprobs for delta in await answer(engine))


async def test_closing_the_iterator_aborts(engine: TokenEngine) -> None:
    async with deltas_of(engine, max_tokens=80, ignore_eos=True) as deltas:
        await anext(deltas)
        assert engine.load().running == 1
    await answer(engine, max_tokens=2)  # whose steps come after the abort
    load = engine.load()
    assert (load.running, load.waiting, load.waiting_prefill_tokens, load.kv_blocks_used) == (0, 0, 0, 0)


async def test_many_aborts_leave_room_for_all(engine: TokenEngine) -> None:
    async def begin_and_abort(start: int) -> None:
        async with deltas_of(engine, tuple(range(start, start + 60)), max_tokens=60, ignore_eos=True) as deltas:
            await anext(deltas)

    await asyncio.gather(*(begin_and_abort(start) for start in range(20)))
    whole = await asyncio.gather(*(answer(engine, max_tokens=60, ignore_eos=True) for _ in range(4)))
    assert [len(tokens_of(deltas)) for deltas in whole] == [60] * 4
    assert engine.load().kv_blocks_used == 0


async def test_it_holds_in_its_cache_what_it_says(engine: TokenEngine) -> None:
    assert (await answer(engine))[0].cached_tokens == 0
    cached = (await answer(engine))[0].cached_tokens
    held = [token for block in engine.kv.snapshot() for token in block.token_ids]
    assert tuple(held[:cached]) == PROMPT[:cached]
    assert bool(cached) == bool(held)  # an engine without a prefix cache says so with an empty one


async def test_closing_the_engine_ends_its_requests(engine: TokenEngine) -> None:
    async with deltas_of(engine, max_tokens=80, ignore_eos=True) as deltas:
        await anext(deltas)
        await engine.close()
        reasons = [delta.finish_reason async for delta in deltas]
    assert reasons[-1] is FinishReason.ERROR
