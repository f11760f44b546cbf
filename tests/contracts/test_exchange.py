"""Requests that no task serves: the usual ones, and all that can come between such a request and its answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import pytest_asyncio

from deepinfer.engine_shim.frames import AnswerFrame, Body, End, EngineCall, Failure, Head
from deepinfer.fleet.snapshot import Snapshot
from tests.gateway_parts import RunningGateway, fleet_of, running_gateway, until
from tests.hand_made_engine import HandMadeEngine, answers, hand_made_engine
from tests.keyed import KEYS, USER, key, ring_of
from tests.raw_http import Streams, answers_in, connection_to, said

JSON = ((b"content-type", b"application/json"),)
WHOLE = b'{"id": "1", "usage": {"prompt_tokens": 3, "completion_tokens": 2}}'
pytestmark = pytest.mark.asyncio(loop_scope="module")


class Held:
    """Answers what it is told to, in its own time."""

    def __init__(self) -> None:
        self.asked, self.let_go = asyncio.Event(), asyncio.Event()

    async def __call__(self, stream: int, call: EngineCall) -> AsyncIterator[AnswerFrame | bytes]:
        self.asked.set()
        await self.let_go.wait()
        yield Head(stream, 200, JSON)
        yield Body(stream, WHOLE[:20])
        yield Body(stream, WHOLE[20:])
        yield End(stream)


def request(body: bytes = b'{"model": "chat"}', *headers: bytes, secret: str = "") -> bytes:
    lines = [b"POST /v1/chat/completions HTTP/1.1", b"Host: localhost", b"Content-Length: %d" % len(body), *headers]
    lines += [b"Authorization: Bearer " + secret.encode()] if secret else []
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


async def answer_to(streams: Streams, asked: bytes) -> tuple[int, bytes]:
    reader, writer = streams
    writer.write(asked)
    data = b""
    while not (found := answers_in(data)):
        data += await asyncio.wait_for(reader.read(1 << 16), 10)
        assert data, "the connection ended"
    (answer,) = found
    return answer


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def engines() -> AsyncIterator[tuple[HandMadeEngine, HandMadeEngine]]:
    async with hand_made_engine() as one, hand_made_engine(placement="chat-aaaaa-1") as other:
        yield one, other


@pytest_asyncio.fixture(loop_scope="module")
async def engine(engines: tuple[HandMadeEngine, HandMadeEngine]) -> HandMadeEngine:
    """The one of a gateway with one."""
    engine = engines[0]
    engine.answering = answers(WHOLE)
    engine.calls.clear()
    engine.cancelled.clear()
    return engine


@pytest_asyncio.fixture(loop_scope="module")
async def gateway(engine: HandMadeEngine) -> AsyncIterator[RunningGateway]:
    async with met(engine) as gateway:
        yield gateway


@asynccontextmanager
async def met(*engines: HandMadeEngine) -> AsyncIterator[RunningGateway]:
    """Each has answered once, so that there is a connection to it."""
    async with running_gateway(fleet_of(*(engine.endpoint for engine in engines))) as gateway:
        await until(lambda: len(gateway.replicas.candidates("chat")) == len(engines))
        for engine in engines:
            engine.answering = answers(WHOLE)
        for _ in range(2 * len(engines)):
            assert (await gateway.ask()).json()["id"] == "1"
        for engine in engines:
            engine.calls.clear()
        yield gateway


def tasks() -> set[str]:
    return {task.get_name() for task in asyncio.all_tasks() if "run_asgi" in repr(task.get_coro())}


async def test_a_usual_request_is_served_by_no_task(gateway: RunningGateway, engine: HandMadeEngine) -> None:
    engine.answering = held = Held()
    async with connection_to(gateway.url) as streams:
        asking = asyncio.create_task(answer_to(streams, request()))
        await held.asked.wait()
        assert not tasks()
        held.let_go.set()
        assert await asking == (200, WHOLE)
    assert 'path="/v1/chat/completions",status="200"} 3.0' in (await gateway.http.get("/metrics")).text


async def test_its_answer_has_a_length_and_our_headers(gateway: RunningGateway) -> None:
    answer = await gateway.ask(extra={"x-request-id": "mine"})
    assert answer.content == WHOLE and answer.headers["content-length"] == str(len(WHOLE))
    assert answer.headers["x-request-id"] == "mine" and answer.headers["date"]
    assert "transfer-encoding" not in answer.headers


async def test_a_stream_has_a_task_from_its_head_on(gateway: RunningGateway, engine: HandMadeEngine) -> None:
    engine.answering = answers(b"data: {}\n\n", b"data: [DONE]\n\n", content_type=b"text/event-stream")
    assert (await gateway.ask(stream=True)).text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("pieces", [(b'{"id"',), (b"",), (b"no json",), (b'{"id"', Failure)])
async def test_what_is_no_whole_answer_is_asked_of_another_replica(
    engines: tuple[HandMadeEngine, HandMadeEngine], pieces: tuple[bytes | type[Failure], ...]
) -> None:
    async def broken(stream: int, call: EngineCall) -> AsyncIterator[AnswerFrame | bytes]:
        yield Head(stream, 200, JSON)
        for piece in pieces:
            yield Body(stream, piece) if isinstance(piece, bytes) else Failure(stream, "it broke")
        if Failure not in pieces:
            yield End(stream)

    async with met(*engines) as gateway:
        engines[0].answering = broken
        assert [(await gateway.ask()).json()["id"] for _ in range(2)] == ["1", "1"]
        assert len(engines[0].calls) > 0 and len(engines[1].calls) == 2
        retries = f'deepinfer_retries_total{{model_name="chat",reason="broken"}} {len(engines[0].calls)}.0'
        assert retries in (await gateway.http.get("/metrics")).text


async def test_who_hangs_up_is_cancelled_in_the_engine(gateway: RunningGateway, engine: HandMadeEngine) -> None:
    engine.answering = held = Held()
    async with connection_to(gateway.url) as (_, writer):
        writer.write(request())
        await held.asked.wait()
    await asyncio.wait_for(engine.cancelled.wait(), 10)
    await until(lambda: not gateway.replicas.candidates("chat")[0].in_flight)
    assert 'status="499"} 1.0' in (await gateway.http.get("/metrics")).text


async def test_who_sends_more_before_the_answer_gets_that_and_is_closed(
    gateway: RunningGateway, engine: HandMadeEngine
) -> None:
    engine.answering = held = Held()
    async with connection_to(gateway.url) as (reader, writer):
        writer.write(request())
        await held.asked.wait()
        writer.write(request() + request())
        await asyncio.sleep(0.1)  # nothing tells that it was read
        held.let_go.set()
        data = await asyncio.wait_for(said(reader), 10)
    assert answers_in(data) == [(200, WHOLE)] and b"connection: close" in data
    assert len(engine.calls) == 1


async def test_what_a_connection_said_before_is_not_taken_for_what_it_says(engine: HandMadeEngine) -> None:
    ring = ring_of(*KEYS)
    async with running_gateway(fleet_of(engine.endpoint), keys=ring) as gateway:
        await until(lambda: gateway.replicas.candidates("chat"))
        async with connection_to(gateway.url) as streams:
            said_first = (b"X-Team: one", b"X-Request-Timeout: 5")
            assert (await answer_to(streams, request(b'{"model": "chat"}', *said_first, secret=USER)))[0] == 200
            longer = json.dumps({"model": "chat", "user": "somebody"}).encode()
            assert (await answer_to(streams, request(longer, *said_first, secret=USER)))[0] == 200
            assert (await answer_to(streams, request(longer, b"X-Team: two", secret=USER)))[0] == 200
            assert (await answer_to(streams, request(longer, b"X-Team: two", secret="di-none")))[0] == 401
            assert (await answer_to(streams, request(longer, b"X-Team: two", secret=USER)))[0] == 200
            ring.update(Snapshot(api_keys=(key("di-other"),)))
            status, told = await answer_to(streams, request(longer, b"X-Team: two", secret=USER))
            assert status == 401 and b"revoked" in told
        assert [dict(call.headers).get(b"x-team") for call in engine.calls] == [b"one", b"one", b"two", b"two"]
        assert [call.body for call in engine.calls] == [b'{"model": "chat"}', longer, longer, longer]
        assert not any(b"authorization" in dict(call.headers) for call in engine.calls)


async def test_a_gateway_that_ends_waits_for_what_no_task_serves(engine: HandMadeEngine) -> None:
    held = Held()
    async with connection_of_a_gateway_that_ends(engine, held) as (reader, ended):
        assert not ended.done()
        held.let_go.set()
        data = await asyncio.wait_for(said(reader), 10)
        assert answers_in(data) == [(200, WHOLE)] and b"connection: close" in data
        await ended


@asynccontextmanager
async def connection_of_a_gateway_that_ends(
    engine: HandMadeEngine, held: Held
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.Task[None]]]:
    """While `held` has its request."""
    let_end = asyncio.Event()
    found: asyncio.Future[RunningGateway] = asyncio.get_running_loop().create_future()

    async def lives() -> None:
        async with met(engine) as gateway:
            engine.answering = held
            found.set_result(gateway)
            await let_end.wait()

    async with asyncio.TaskGroup() as group:
        ended = group.create_task(lives())
        gateway = await found
        async with connection_to(gateway.url) as (reader, writer):
            writer.write(request())
            await held.asked.wait()
            let_end.set()
            await until(lambda: gateway.drain.begun)
            yield reader, ended
