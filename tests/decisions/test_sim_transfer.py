"""Blocks go from one simulated engine to another: fetched once, kept for a while, checked, and else computed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest

from deepinfer.engine_shim.engine_args import SimArgs
from deepinfer.engine_shim.engines.sim import SimEngine
from deepinfer.engine_shim.text.byte_tokenizer import ByteTokenizer
from deepinfer.engine_shim.token_engine import SamplingParams, TokenDelta, TokenRequest
from deepinfer.fleet.errors import InvalidRequest

FAST = {"prefill_tokens_per_second": 1e9, "seconds_per_output_token": 0.0, "block_size": 4, "kv_blocks": 16}
PROMPT = tuple(range(40))
LENDS = {"do_remote_decode": True, "do_remote_prefill": False}


@asynccontextmanager
async def two(**args: float) -> AsyncIterator[tuple[SimEngine, SimEngine]]:
    engines = [SimEngine("sim", ByteTokenizer(), SimArgs.model_validate(FAST | args)) for _ in range(2)]
    try:
        yield engines[0], engines[1]
    finally:
        for engine in engines:
            await engine.close()


async def last(engine: SimEngine, transfer: Mapping[str, Any] | None, prompt: tuple[int, ...] = PROMPT) -> TokenDelta:
    request = TokenRequest("r", prompt, SamplingParams(max_tokens=1), transfer=transfer)
    async with aclosing(engine.generate(request)) as deltas:  # type: ignore[type-var]
        return [delta async for delta in deltas][-1]


async def test_a_prompt_is_taken_over_once() -> None:
    async with two() as (first, second):
        offer = (await last(first, LENDS)).transfer
        assert offer is not None and offer["do_remote_prefill"] and offer["remote_num_tokens"] == 40
        assert first.load().kv_blocks_used == 10
        taken = await last(second, offer)
        assert taken.cached_tokens == 36  # the last token gives the first logits
        assert taken.token_ids == (await last(first, None)).token_ids and taken.transfer is None
        assert len(second.kv) == 10 and first.load().kv_blocks_used == 0
        async with two() as (third, _):
            assert (await last(third, offer)).cached_tokens == 0


@pytest.mark.parametrize(
    ("change", "prompt"),
    [
        ({}, PROMPT[::-1]),  # another prompt's blocks would be wrong ones
        ({"remote_request_id": "other"}, PROMPT),
        ({"remote_engine_id": "other"}, PROMPT),
        ({"remote_port": 1}, PROMPT),
    ],
)
async def test_what_cannot_be_fetched_is_computed(change: dict[str, Any], prompt: tuple[int, ...]) -> None:
    async with two() as (first, second):
        offer = (await last(first, LENDS)).transfer
        assert (await last(second, {**(offer or {}), **change}, prompt)).cached_tokens == 0


async def test_what_has_no_room_is_computed_when_there_is_room() -> None:
    async with two(kv_blocks=12, seconds_per_output_token=0.01) as (first, second):
        offer = (await last(first, LENDS)).transfer
        other = TokenRequest("o", PROMPT[::-1], SamplingParams(max_tokens=4))
        async with aclosing(second.generate(other)) as deltas:  # type: ignore[type-var]
            await anext(deltas)
            taking = asyncio.create_task(last(second, offer))
            async for _ in deltas:
                pass
        assert (await taking).cached_tokens == 0


@pytest.mark.parametrize(
    "change", [{"remote_host": "10.0.0.1"}, {"remote_port": "80"}, {"remote_block_ids": [1]}, {"remote_engine_id": 5}]
)
async def test_what_no_simulated_engine_said_is_refused(change: dict[str, Any]) -> None:
    async with two() as (first, second):
        offer = (await last(first, LENDS)).transfer
        with pytest.raises(InvalidRequest, match="kv_transfer_params"):
            await last(second, {**(offer or {}), **change})


async def test_blocks_that_nobody_fetches_are_given_back_to_who_waits_for_room() -> None:
    async with two(transfer_timeout_seconds=0.05) as (engine, _):
        await last(engine, LENDS)
        steps = engine.work_done()
        assert (await last(engine, None, PROMPT[::-1])).cached_tokens == 0  # 10 of 16 blocks were kept till then
        assert engine.work_done() == steps + 40
        assert engine.load().kv_blocks_used == 0
