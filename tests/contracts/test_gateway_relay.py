"""OpenAI's own client, through a real gateway, to real shim processes with simulated engines."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import pytest_asyncio
from openai.types.chat import ChatCompletionMessageParam

from deepinfer.fleet.spec import RoutingPolicy
from tests.gateway_parts import RunningGateway, fleet_of, running_gateway, until
from tests.sim_engine import SimProcess, sim_processes

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hello there"}]
SLOWLY = {"seconds_per_output_token": 0.05}


@asynccontextmanager
async def gateway_over(sims: list[SimProcess]) -> AsyncIterator[RunningGateway]:
    async with running_gateway(fleet_of(*(sim.endpoint for sim in sims))) as gateway:
        await until(lambda: len(gateway.replicas.candidates("chat")) == len(sims))
        yield gateway


def client_of(gateway: RunningGateway) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0, timeout=30)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def sims(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[list[SimProcess]]:
    async with sim_processes(tmp_path_factory.mktemp("sims"), 2, seconds_per_output_token=0.002) as sims:
        yield sims


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def gateway(sims: list[SimProcess]) -> AsyncIterator[RunningGateway]:
    async with gateway_over(sims) as gateway:
        yield gateway


@pytest.mark.asyncio(loop_scope="module")
async def test_a_request_leaves_nothing_to_the_garbage_collector(gateway: RunningGateway) -> None:
    """Cycles of thousands of requests would be looked for at once, while all streams wait."""
    for _ in range(2):  # each replica: the first request there makes the connection
        await gateway.ask(max_tokens=2)
    gc.collect()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        for stream in (False, True):
            await gateway.ask(max_tokens=2, stream=stream)
        gc.collect()
        left = {type(found).__qualname__ for found in gc.garbage if is_ours(type(found))}
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
    assert not left


def is_ours(kind: type) -> bool:
    return kind.__module__.startswith(("deepinfer.", "uvicorn."))


@pytest.mark.asyncio(loop_scope="module")
async def test_a_chat_answered_whole_and_streamed_is_the_same(gateway: RunningGateway) -> None:
    async with client_of(gateway) as client:
        whole = await client.chat.completions.create(model="chat", messages=HELLO, max_tokens=8, temperature=0)
        text = whole.choices[0].message.content
        assert text and whole.usage and whole.usage.completion_tokens == 8
        stream = await client.chat.completions.create(
            model="org/model", messages=HELLO, max_tokens=8, temperature=0, stream=True
        )
        pieces = [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]
        assert "".join(pieces) == text and len([p for p in pieces if p]) > 1


@pytest.mark.asyncio(loop_scope="module")
async def test_a_completion_is_answered(gateway: RunningGateway) -> None:
    async with client_of(gateway) as client:
        answer = await client.completions.create(model="chat", prompt="once upon", max_tokens=4)
        assert answer.choices[0].text and answer.choices[0].finish_reason == "length"


@pytest.mark.asyncio(loop_scope="module")
async def test_the_engine_s_own_refusal_is_passed_on(gateway: RunningGateway) -> None:
    async with client_of(gateway) as client:
        with pytest.raises(openai.BadRequestError):
            await client.chat.completions.create(model="chat", messages=HELLO, temperature=-1)


@pytest.mark.asyncio(loop_scope="module")
async def test_sixteen_streams_at_once_are_shared_by_both_replicas(
    gateway: RunningGateway, sims: list[SimProcess]
) -> None:
    most: dict[str, int] = {}
    gateway.replicas.update(fleet_of(*(sim.endpoint for sim in sims), routing=RoutingPolicy.LEAST_LOADED))

    async def one(client: openai.AsyncOpenAI, number: int) -> str:
        stream = await client.chat.completions.create(
            model="chat", messages=[{"role": "user", "content": f"say {number}"}], max_tokens=12, stream=True
        )
        text = ""
        async for chunk in stream:
            for candidate in gateway.replicas.candidates("chat"):
                most[candidate.placement] = max(most.get(candidate.placement, 0), candidate.in_flight)
            text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
        return text

    async with client_of(gateway) as client:
        texts = await asyncio.gather(*(one(client, number) for number in range(16)))
    assert all(texts)
    assert most == {"chat-aaaaa-0": 8, "chat-aaaaa-1": 8}


@pytest.mark.asyncio(loop_scope="module")
async def test_a_hang_up_frees_the_engine(gateway: RunningGateway, sims: list[SimProcess]) -> None:
    body: dict[str, Any] = {"model": "chat", "messages": HELLO, "max_tokens": 4000, "stream": True}
    async with gateway.http.stream("POST", "/v1/chat/completions", json=body) as answer:
        lines = answer.aiter_lines()  # kept: a forgotten one closes the answer whenever it is collected
        await anext(lines)
        (busy,) = (c.endpoint for c in gateway.replicas.candidates("chat") if c.in_flight)
        (sim,) = (sim for sim in sims if sim.endpoint == busy)
        await sim.state(running=1)
    async with asyncio.timeout(5):  # of an answer that takes eight seconds if nobody stops it
        await sim.state(running=0)


async def test_an_engine_killed_in_mid_stream_without_another_ends_the_stream_with_an_error(tmp_path: Path) -> None:
    async with sim_processes(tmp_path, 1, **SLOWLY) as (sim,), gateway_over([sim]) as gateway:
        body: dict[str, Any] = {"model": "chat", "messages": HELLO, "max_tokens": 400, "stream": True}
        async with gateway.http.stream("POST", "/v1/chat/completions", json=body) as answer:
            lines = answer.aiter_lines()
            assert (await anext(lines)).startswith("data: ")
            await sim.kill()
            rest = [line async for line in lines if line]
        assert answer.status_code == 200
        assert json.loads(rest[-1].removeprefix("data: "))["error"]["code"] == "stream_interrupted"
        assert "data: [DONE]" not in rest
        await until(lambda: not gateway.replicas.candidates("chat"))
        assert (await gateway.ask()).status_code == 503


async def test_an_engine_killed_before_its_first_byte_costs_the_client_nothing(tmp_path: Path) -> None:
    async with sim_processes(tmp_path, 2, prefill_tokens_per_second=20) as sims, gateway_over(sims) as gateway:
        asking = asyncio.create_task(gateway.ask(max_tokens=2, stream=True))
        await sims[0].state(running=1)
        await sims[0].kill()
        answer = await asking
        assert answer.status_code == 200 and answer.text.rstrip().endswith("data: [DONE]")
        await sims[1].kill()
        with pytest.raises(httpx.HTTPStatusError, match=r"50[23]"):
            (await gateway.ask()).raise_for_status()
