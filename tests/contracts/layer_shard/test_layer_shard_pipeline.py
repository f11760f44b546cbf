"""A model in stages answers as the whole one does, whatever becomes of its stages meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from deepinfer.engine_shim.engines.layer_shard.stage import Source, build_stage
from deepinfer.engine_shim.token_engine import SamplingParams, TokenRequest
from tests.contracts.layer_shard.pipelines import Pipelined, answer_of, pipelined, seats_of

GREEDY = SamplingParams(max_tokens=24, temperature=0, ignore_eos=True)
SEEDED = SamplingParams(
    max_tokens=24, temperature=1.2, top_p=0.9, seed=11, presence_penalty=0.5, repetition_penalty=1.2, ignore_eos=True
)


async def answers_of(engine: Any, prompts: list[list[int]], sampling: SamplingParams = GREEDY) -> list[list[int]]:
    return await asyncio.gather(*(answer_of(engine, prompt, sampling) for prompt in prompts))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("cuts", [(3,), (2, 5)], ids=str)
async def test_stages_answer_together_as_the_whole_model_does(
    family: str,
    cuts: tuple[int, ...],
    dtype: torch.dtype,
    tiny_model: Callable[..., Path],
    serve: Callable[..., Any],
    prompts: list[list[int]],
) -> None:
    folder = tiny_model(family, dtype)
    async with serve(folder) as engine:
        whole = [await answers_of(engine, prompts, sampling) for sampling in (GREEDY, SEEDED)]
    async with pipelined(folder, cuts) as pipeline:
        assert [await answers_of(pipeline.engine, prompts, sampling) for sampling in (GREEDY, SEEDED)] == whole


async def losing(pipeline: Pipelined, number: int, prompts: list[list[int]], sampling: SamplingParams) -> Any:
    """The answers of requests in whose midst a stage goes, and a spare one takes its place."""
    third = asyncio.Event()
    answers: list[list[int]] = [[] for _ in prompts]

    async def ask(at: int) -> None:
        async for delta in pipeline.engine.generate(TokenRequest(str(at), tuple(prompts[at]), sampling)):
            assert not delta.error
            answers[at] += delta.token_ids
            if len(answers[at]) == 3:
                third.set()

    async with asyncio.TaskGroup() as tasks:
        for at in range(len(prompts)):
            tasks.create_task(ask(at))
        await third.wait()
        await asyncio.to_thread(pipeline.stages[number].close)
        lost = await pipeline.lost.get()
        assert lost.stage == pipeline.stages[number].name
        pipeline.stages[number] = pipeline.spare("spare")
        await pipeline.engine.arrange(2, pipeline.seats)
    return answers


@pytest.mark.parametrize("sampling", [GREEDY, SEEDED], ids=["greedy", "seeded"])
@pytest.mark.parametrize("journal_bytes", [1 << 20, 0], ids=["journal", "tokens"])
@pytest.mark.parametrize("number", [0, 1])
async def test_a_lost_stage_is_replaced_and_no_answer_changes(
    number: int,
    journal_bytes: int,
    sampling: SamplingParams,
    tiny_model: Callable[..., Path],
    serve: Callable[..., Any],
    prompts: list[list[int]],
) -> None:
    folder = tiny_model("llama")
    async with serve(folder) as engine:
        whole = await answers_of(engine, prompts, sampling)
    async with pipelined(folder, (2, 5), journal_bytes) as pipeline:
        assert await losing(pipeline, number, prompts, sampling) == whole
        assert await answers_of(pipeline.engine, prompts, sampling) == whole


async def test_stages_join_and_leave_fifty_times_in_mid_run(
    tiny_model: Callable[..., Path], serve: Callable[..., Any], prompts: list[list[int]]
) -> None:
    """Also the head's own layers change each time. Nobody loses a request, and no answer is another one."""
    folder = tiny_model("llama")
    async with serve(folder) as engine:
        whole = await answers_of(engine, prompts)
    async with pipelined(folder, (2, 5)) as pipeline:
        wide, narrow = pipeline.seats, seats_of(pipeline.stages[:1], (4,))
        changed = asyncio.Event()

        async def change() -> None:
            for number in range(50):
                seats, layers = (narrow, range(4)) if number % 2 == 0 else (wide, range(2))
                await pipeline.engine.arrange(number + 2, seats, build_stage(Source(folder, layers)))
            changed.set()

        async def ask() -> int:
            rounds = 0
            while not changed.is_set():
                assert await answers_of(pipeline.engine, prompts) == whole
                rounds += 1
            return rounds

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(change())
            asking = tasks.create_task(ask())
        assert asking.result() > 1
