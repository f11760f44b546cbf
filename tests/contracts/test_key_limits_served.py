"""What a limited key meets at a real gateway: how much it may, what is left, and when to come again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx

from deepinfer.engine_shim.frames import AnswerFrame, Body, EngineCall, Head
from deepinfer.fleet.api_key import KeyLimits
from tests.gateway_parts import RunningGateway, fleet_of, running_gateway, until
from tests.hand_made_engine import Answering, HandMadeEngine, answers, hand_made_engine
from tests.keyed import USER, bearer, key, ring_of

WHOLE = answers(b'{"choices": [], "usage": {"prompt_tokens": 90, "total_tokens": 100, "completion_tokens": 10}}')


async def never_ends(stream: int, call: EngineCall) -> AsyncIterator[AnswerFrame]:
    yield Head(stream, 200, ((b"content-type", b"text/event-stream"),))
    yield Body(stream, b"data: {}\n\n")
    await asyncio.Event().wait()


@asynccontextmanager
async def limited_to(
    limits: KeyLimits, answering: Answering = WHOLE
) -> AsyncIterator[tuple[RunningGateway, HandMadeEngine]]:
    ring = ring_of(key(USER, "user", limits=limits))
    async with (
        hand_made_engine(answering=answering) as engine,
        running_gateway(fleet_of(engine.endpoint), keys=ring) as gateway,
    ):
        await until(lambda: gateway.replicas.candidates("chat"))
        yield gateway, engine


async def ask(gateway: RunningGateway) -> httpx.Response:
    return await gateway.ask(extra=bearer(USER), max_tokens=10)


async def test_requests_a_minute() -> None:
    async with limited_to(KeyLimits(requests_per_minute=2)) as (gateway, engine):
        first, second, third = [await ask(gateway) for _ in range(3)]
        assert (first.status_code, second.status_code, third.status_code) == (200, 200, 429)
        assert first.headers["x-ratelimit-limit-requests"] == "2"
        assert [answer.headers["x-ratelimit-remaining-requests"] for answer in (first, second)] == ["1", "0"]
        assert third.json()["error"]["code"] == "rate_limit_exceeded" and 1 <= int(third.headers["retry-after"]) <= 30
        assert len(engine.calls) == 2


async def test_tokens_a_minute_are_those_the_answers_tell() -> None:
    async with limited_to(KeyLimits(tokens_per_minute=250)) as (gateway, _):
        statuses = [(await ask(gateway)).status_code for _ in range(4)]
        assert statuses == [200, 200, 200, 429]  # 100 each: the third was foreseen smaller than it was


async def test_streams_at_once_and_a_hang_up_makes_room() -> None:
    async with limited_to(KeyLimits(concurrent_streams=1), never_ends) as (gateway, _):
        body = {"model": "chat", "stream": True}
        async with gateway.http.stream("POST", "/v1/chat/completions", json=body, headers=bearer(USER)) as running:
            assert running.status_code == 200
            assert (await ask(gateway)).status_code == 429
        await until(lambda: gateway.replicas.candidates("chat")[0].in_flight == 0)
        async with gateway.http.stream("POST", "/v1/chat/completions", json=body, headers=bearer(USER)) as again:
            assert again.status_code == 200
