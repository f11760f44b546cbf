"""The engine's promises to its callers: isolation, memory, cancelling, limits, failures."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from deepinfer.engine_shim.engines.layer_shard.attention import Segment
from deepinfer.engine_shim.engines.layer_shard.engine import LayerShardEngine
from deepinfer.engine_shim.engines.layer_shard.errors import LayerShardError
from deepinfer.engine_shim.engines.layer_shard.schedule import Limits
from deepinfer.engine_shim.engines.layer_shard.sequence import Sequence
from deepinfer.engine_shim.engines.layer_shard.stage import Source, Stage, build_stage
from deepinfer.engine_shim.engines.layer_shard.stages import WholeModel
from deepinfer.engine_shim.engines.layer_shard.steps import Steps
from deepinfer.engine_shim.token_engine import (
    ContextTooLong,
    EngineInfo,
    FinishReason,
    SamplingParams,
    TokenDelta,
    TokenRequest,
)
from deepinfer.fleet.errors import InvalidRequest

Answer = Callable[[LayerShardEngine, list[int], SamplingParams], Coroutine[Any, Any, list[int]]]
Serve = Callable[..., Any]
GREEDY = SamplingParams(max_tokens=40, temperature=0, ignore_eos=True)


def request(prompt: list[int], **sampling: Any) -> TokenRequest:
    return TokenRequest("one", tuple(prompt), SamplingParams(**{"max_tokens": 8, "temperature": 0, **sampling}))


def own_engine(stage: Stage, limits: Limits) -> LayerShardEngine:
    info = EngineInfo("tiny", "layer-shard", "test", min(256, limits.kv_tokens), 16, limits.kv_tokens // 16, "x", 0)
    return LayerShardEngine(WholeModel(stage), limits, info)


async def test_a_seed_gives_the_same_answer_whoever_shares_the_step(
    tiny_model: Callable[..., Path], serve: Serve, answer: Answer, prompts: list[list[int]]
) -> None:
    seeded = SamplingParams(max_tokens=20, temperature=1.5, top_p=0.95, seed=7, ignore_eos=True)
    others = [SamplingParams(max_tokens=25, temperature=t, ignore_eos=True) for t in (0, 1.0, 2.0)]
    async with serve(tiny_model("llama")) as engine:
        alone = await answer(engine, prompts[0], seeded)
        crowd = [answer(engine, prompt, sampling) for prompt, sampling in zip(prompts[1:], others, strict=False)]
        _, _, _, together = await asyncio.gather(*crowd, answer(engine, prompts[0], seeded))
        other_seed = await answer(engine, prompts[0], SamplingParams(20, 1.5, 0.95, seed=8, ignore_eos=True))
    assert alone == together
    assert alone != other_seed


async def test_a_prompt_in_chunks_is_answered_like_a_whole_one(
    tiny_model: Callable[..., Path], serve: Serve, answer: Answer
) -> None:
    prompt = list(range(3, 203))
    for name in ("llama", "mistral-window"):
        async with serve(tiny_model(name), max_num_batched_tokens=256) as engine:
            whole = await answer(engine, prompt, GREEDY)
        async with serve(tiny_model(name), max_num_batched_tokens=64) as engine:
            beside = asyncio.gather(answer(engine, prompt[:9], GREEDY), answer(engine, prompt, GREEDY))
            assert (await beside)[1] == whole


def answers_of(stage: Stage, kv_tokens: int, prompts: list[list[int]]) -> tuple[list[list[int]], int]:
    """The answers of prompts that are asked at once, and how often one lost its memory."""
    steps, stages, lost = Steps(Limits(8, 2048, kv_tokens)), WholeModel(stage), 0
    sampling = SamplingParams(max_tokens=120, temperature=0, ignore_eos=True)
    sequences = [
        Sequence(number, TokenRequest("r", tuple(prompt), sampling), (), len(prompt) + 120, seed=0)
        for number, prompt in enumerate(prompts)
    ]
    for sequence in sequences:
        steps.add(sequence)
    while not steps.idle:
        before, under_way = steps.load().running, steps.next_batch()
        assert under_way is not None
        deltas = steps.returned(stages.launch(under_way.batch, under_way.token_ids))
        finished = sum(delta.finish_reason is not None for _, delta in deltas)
        lost += max(0, before - finished - steps.load().running)
        assert steps.kv_tokens_held <= kv_tokens
    return [list(sequence.answer) for sequence in sequences], lost


def test_sequences_that_lose_their_memory_are_answered_all_the_same(
    tiny_model: Callable[..., Path], prompts: list[list[int]]
) -> None:
    stage = build_stage(Source(tiny_model("llama")))
    expected, none_lost = answers_of(stage, 8192, prompts)
    answers, lost = answers_of(stage, 256, prompts)  # of five answers of up to 160 tokens each
    assert (none_lost, lost > 0) == (0, True)
    assert answers == expected


async def test_closing_the_iterator_frees_the_memory(
    tiny_model: Callable[..., Path], serve: Serve, answer: Answer, prompts: list[list[int]]
) -> None:
    async with serve(tiny_model("llama")) as engine:
        weights = engine.info.memory_bytes
        long = cast(AsyncGenerator[TokenDelta, None], engine.generate(request(prompts[4], max_tokens=200)))
        await anext(long)
        assert engine.load().running == 1
        assert engine.load().kv_blocks_used > 0
        assert engine.info.memory_bytes > weights
        await long.aclose()
        await answer(engine, prompts[0], SamplingParams(max_tokens=1))  # its step comes after the abort
        assert engine.load().running == 0
        assert engine.load().kv_blocks_used == 0
        assert engine.info.memory_bytes == weights


async def test_a_cancelled_caller_ends_its_request(
    tiny_model: Callable[..., Path], serve: Serve, answer: Answer, prompts: list[list[int]]
) -> None:
    async with serve(tiny_model("llama")) as engine:
        first = asyncio.Event()

        async def read() -> None:
            async for _ in engine.generate(request(prompts[4], max_tokens=200, ignore_eos=True)):
                first.set()

        reader = asyncio.create_task(read())
        await first.wait()
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
        await answer(engine, prompts[0], SamplingParams(max_tokens=1))
        assert engine.load().running == 0


async def test_stop_tokens_and_limits_end_an_answer(
    tiny_model: Callable[..., Path], serve: Serve, answer: Answer, prompts: list[list[int]]
) -> None:
    async with serve(tiny_model("llama")) as engine:
        free = await answer(engine, prompts[0], GREEDY)
        third = free[2]
        before = free.index(third)
        stopped = [d async for d in engine.generate(request(prompts[0], max_tokens=40, stop_token_ids=(third,)))]
        assert [t for d in stopped for t in d.token_ids] == free[: before + 1]
        assert stopped[-1].finish_reason is FinishReason.STOP
        limited = [d async for d in engine.generate(request(prompts[0], max_tokens=5, ignore_eos=True))]
        assert limited[-1].finish_reason is FinishReason.LENGTH
        assert sum(len(d.token_ids) for d in limited) == 5
        held_back = request(prompts[0], max_tokens=40, stop_token_ids=(third,), min_tokens=10, ignore_eos=True)
        tokens = [t async for d in engine.generate(held_back) for t in d.token_ids]
        assert third not in tokens[:10]


async def test_an_answer_ends_at_the_models_length(
    tiny_model: Callable[..., Path], serve: Serve, answer: Answer
) -> None:
    async with serve(tiny_model("llama"), max_model_len=32) as engine:
        assert len(await answer(engine, [5] * 20, GREEDY)) == 12
        with pytest.raises(ContextTooLong) as refused:
            await answer(engine, [5] * 32, GREEDY)
        assert (refused.value.prompt_tokens, refused.value.max_model_len) == (32, 32)


async def test_token_ids_the_model_does_not_have_are_refused(
    tiny_model: Callable[..., Path], serve: Serve, answer: Answer
) -> None:
    async with serve(tiny_model("llama")) as engine:
        for prompt, sampling in (
            ([257], GREEDY),
            ([5], SamplingParams(max_tokens=1, logit_bias=((-1, 1.0),))),
            ([5], SamplingParams(max_tokens=1, stop_token_ids=(300,))),
        ):
            with pytest.raises(InvalidRequest, match=r"0\.\.256"):
                await answer(engine, prompt, sampling)


async def test_limits_that_cannot_work_are_refused(tiny_model: Callable[..., Path], serve: Serve) -> None:
    for options in ({"max_model_len": 257}, {"max_num_batched_tokens": 63}):
        with pytest.raises(LayerShardError):
            async with serve(tiny_model("llama"), **options):
                pass


class BreaksAt(Stage):
    """A stage whose forward pass fails at prompts of one length, as a device out of memory would."""

    length = 9

    def forward(self, given: torch.Tensor, positions: torch.Tensor, segments: list[Segment]) -> torch.Tensor:
        if self.length in (segment.count for segment in segments):
            raise RuntimeError("out of memory")
        return super().forward(given, positions, segments)


async def test_a_failed_step_ends_its_requests_and_the_engine_goes_on(
    tiny_model: Callable[..., Path], answer: Answer, prompts: list[list[int]]
) -> None:
    stage = build_stage(Source(tiny_model("llama")))
    stage.__class__ = BreaksAt
    engine = own_engine(stage, Limits(8, 2048, 4096))
    deltas = [delta async for delta in engine.generate(request(prompts[2]))]
    assert [d.finish_reason for d in deltas] == [FinishReason.ERROR]
    assert "out of memory" in deltas[0].error
    assert len(await answer(engine, prompts[0], GREEDY)) == 40
    assert engine.load().kv_blocks_used == 0
    await engine.close()


async def test_closing_the_engine_ends_what_runs(
    tiny_model: Callable[..., Path], serve: Serve, prompts: list[list[int]]
) -> None:
    async with serve(tiny_model("llama")) as engine:
        deltas = engine.generate(request(prompts[0], max_tokens=200, ignore_eos=True))
        await anext(deltas)
        await engine.close()
        last = [delta async for delta in deltas][-1]
        assert last.finish_reason in (FinishReason.ERROR, FinishReason.LENGTH)


async def test_the_engine_says_what_it_is(
    tiny_model: Callable[..., Path], serve: Serve, answer: Answer, prompts: list[list[int]]
) -> None:
    async with serve(tiny_model("llama", torch.bfloat16)) as engine:
        assert (engine.info.dtype, engine.info.max_model_len, engine.info.eos_token_ids) == ("bfloat16", 256, (2,))
        assert engine.info.kv_blocks > 0
        assert len(engine.kv) == 0
        await answer(engine, prompts[1], GREEDY)
        load = engine.load()
        assert load.prefill_tokens_per_second > 0
        assert load.seconds_per_output_token > 0
