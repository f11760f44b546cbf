"""The simulated engine: its cache is an LRU of whole prefixes, and its words depend on the prompt alone."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepinfer.engine_shim.engine_args import SimArgs, check_engine_args
from deepinfer.engine_shim.engines.sim import SimEngine
from deepinfer.engine_shim.engines.sim_blocks import chained_blocks
from deepinfer.engine_shim.engines.sim_script import Script
from deepinfer.engine_shim.text.byte_tokenizer import END, ByteTokenizer
from deepinfer.engine_shim.token_engine import SamplingParams, TokenDelta, TokenRequest
from deepinfer.fleet.errors import InvalidRequest
from deepinfer.fleet.spec import EngineKind

FAST = {"prefill_tokens_per_second": 1e9, "seconds_per_output_token": 0.0}


def sim(**args: float) -> SimEngine:
    return SimEngine("sim", ByteTokenizer(), SimArgs.model_validate(FAST | args))


async def answer(engine: SimEngine, prompt: tuple[int, ...], max_tokens: int = 4) -> list[TokenDelta]:
    request = TokenRequest("r", prompt, SamplingParams(max_tokens=max_tokens))
    async with aclosing(engine.generate(request)) as deltas:  # type: ignore[type-var]
        return [delta async for delta in deltas]


@settings(max_examples=40, deadline=None)
@given(
    starts=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=12),
    together=st.booleans(),
)
def test_the_cache_never_overflows_and_holds_whole_prefixes(starts: list[list[int]], together: bool) -> None:
    async def run() -> None:
        engine = sim(block_size=4, kv_blocks=12, max_num_seqs=3)
        prompts = [tuple(token for token in start for _ in range(4)) for start in starts]
        if together:
            await asyncio.gather(*(answer(engine, prompt) for prompt in prompts))
        else:
            for prompt in prompts:
                await answer(engine, prompt)
        held = engine.kv.snapshot()
        assert len(held) <= 12
        assert engine.load().kv_blocks_used == 0
        assert all(block.parent == 0 or (0, block.parent) in engine.kv for block in held)

    asyncio.run(run())


async def test_a_prompt_is_cached_up_to_its_last_token() -> None:
    engine = sim(block_size=4, kv_blocks=100)
    await answer(engine, tuple(range(12)))
    assert (await answer(engine, tuple(range(12))))[0].cached_tokens == 8  # the last token gives the first logits
    assert (await answer(engine, tuple(range(13))))[0].cached_tokens == 12
    assert (await answer(engine, (9, *range(12))))[0].cached_tokens == 0


async def test_the_least_recently_used_prefix_goes_first() -> None:
    engine = sim(block_size=4, kv_blocks=5)
    first, second, third = ((number,) * 9 for number in (1, 2, 3))  # each keeps 2 blocks and needs a third
    for prompt in (first, second, first, third):
        await answer(engine, prompt, max_tokens=1)
    held = {block.name for block in engine.kv.snapshot()}
    assert next(chained_blocks(first, 4)).name in held
    assert next(chained_blocks(second, 4)).name not in held


async def test_words_depend_on_the_prompt_alone() -> None:
    tokenizer = ByteTokenizer()
    prompts = [tuple(tokenizer.encode(f"question {n}", add_special_tokens=False)) for n in range(20)]
    once = [await answer(sim(), prompt, 1000) for prompt in prompts]
    engine = sim()
    again = await asyncio.gather(*(answer(engine, prompt, 1000) for prompt in prompts))
    texts = [[token for delta in deltas for token in delta.token_ids] for deltas in once]
    assert texts == [[token for delta in deltas for token in delta.token_ids] for deltas in again]
    assert len({tuple(text) for text in texts}) > 10
    assert all(32 < len(text) <= 65 and text[-1] == END for text in texts)


@settings(max_examples=100, deadline=None)
@given(
    asked=st.text(alphabet="the riverqa .?\n", max_size=24),
    told=st.integers(0, 70),
    least=st.integers(0, 70),
    most=st.integers(1, 100),
    ignore_eos=st.booleans(),
)
def test_a_prompt_and_the_beginning_of_its_answer_are_answered_with_the_rest(
    asked: str, told: int, least: int, most: int, ignore_eos: bool
) -> None:
    tokenizer = ByteTokenizer()
    script, prompt = Script.of(tokenizer), tuple(tokenizer.encode(asked, add_special_tokens=False))
    whole = script.answer(prompt, SamplingParams(most, min_tokens=least, ignore_eos=ignore_eos))
    told = min(told, len(whole) - 1)
    rest = SamplingParams(most - told, min_tokens=max(0, least - told), ignore_eos=ignore_eos)
    assert script.answer(prompt + whole[:told], rest) == whole[told:]


async def test_a_request_waits_for_room_and_those_behind_it_wait_too() -> None:
    engine = sim(block_size=4, kv_blocks=8, seconds_per_output_token=0.001)
    ended: list[str] = []

    async def run(name: str, prompt: tuple[int, ...], tokens: int) -> None:
        await answer(engine, prompt, tokens)
        ended.append(name)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(run("long", (1,) * 20, 6))
        tasks.create_task(run("too big for what is left", (2,) * 20, 2))
        tasks.create_task(run("small", (3,), 1))
    assert ended[0] == "long"


async def test_a_request_behind_a_full_step_finds_what_that_step_computed() -> None:
    engine, begin = sim(block_size=16, kv_blocks=1000), tuple(range(2400))
    deltas = await asyncio.gather(*(answer(engine, (*begin, number), 1) for number in range(3)))
    assert [first.cached_tokens for first, *_ in deltas] == [0, 2048, 2048]


async def test_nothing_runs_between_requests() -> None:
    engine = sim()
    await answer(engine, (1, 2, 3))
    assert engine._timer is None


@pytest.mark.parametrize(
    ("kind", "args", "param", "words"),
    [
        (EngineKind.SIM, {"kv_block": 3}, "engine_args.kv_block", "Did you mean kv_blocks"),
        (EngineKind.SIM, {"kv_blocks": "many"}, "engine_args.kv_blocks", "valid integer"),
        (EngineKind.SIM, {"seconds_per_output_token": -1.0}, "engine_args.seconds_per_output_token", "greater"),
        (EngineKind.LAYER_SHARD, {"block_size": 3}, "engine_args.block_size", "max_num_batched_tokens"),
    ],
)
def test_wrong_engine_args_are_named(kind: EngineKind, args: dict[str, object], param: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as refused:
        check_engine_args(kind, args)
    assert refused.value.param == param


def test_right_engine_args_pass() -> None:
    check_engine_args(EngineKind.SIM, {"kv_blocks": 10, "load_seconds": 1})
    check_engine_args(EngineKind.LAYER_SHARD, {"threads": None})
    check_engine_args(EngineKind.VLLM, {"anything": "vLLM checks"})
