"""Engines that fail, and clients that leave: before the first byte it is repaired or said, after it never hidden."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx
import pytest

from deepinfer.control_plane.gateway.first_bytes import HELD_BYTES
from deepinfer.control_plane.gateway.relayed_paths import RELAYED_PATHS
from deepinfer.engine_shim.frames import AnswerFrame, Body, End, EngineCall, Failure, Head
from deepinfer.fleet.config import ServeConfig
from tests.gateway_parts import RunningGateway, fleet_of, running_gateway, until
from tests.hand_made_engine import Answering, HandMadeEngine, answers, hand_made_engine

SSE = b"text/event-stream; charset=utf-8"
EVENT = b'data: {"choices": []}\n\n'
GOOD = answers(b'{"ok": true}')
DRAINING = answers(b'{"error": {"message": "draining"}}', status=503)


def breaks_after(*pieces: bytes, content_type: bytes = SSE) -> Answering:
    async def answering(stream: int, call: EngineCall) -> AsyncIterator[AnswerFrame]:
        yield Head(stream, 200, ((b"content-type", content_type),))
        for piece in pieces:
            yield Body(stream, piece)
        yield Failure(stream, "the GPU fell off the bus")

    return answering


async def fails_at_once(stream: int, call: EngineCall) -> AsyncIterator[AnswerFrame]:
    yield Failure(stream, "the GPU fell off the bus")


async def garbage(stream: int, call: EngineCall) -> AsyncIterator[bytes]:
    yield b"\xff\xff not a message"


async def odd_status(stream: int, call: EngineCall) -> AsyncIterator[AnswerFrame]:
    yield Head(stream, 99, ())
    yield End(stream)


async def never_ends(stream: int, call: EngineCall) -> AsyncIterator[AnswerFrame]:
    yield Head(stream, 200, ((b"content-type", SSE),))
    yield Body(stream, EVENT)
    await asyncio.Event().wait()


async def never_begins(stream: int, call: EngineCall) -> AsyncIterator[AnswerFrame]:
    await asyncio.Event().wait()
    yield End(stream)


FAILURES = {
    "failure": fails_at_once,
    "garbage": garbage,
    "head, then failure": breaks_after(),
    "nothing": answers(),
    "odd status": odd_status,
    "JSON, then failure": breaks_after(b'{"choices": [', b'{"ind', content_type=b"application/json"),
    "JSON cut off": answers(b'{"choices": [', b'{"ind'),
    "JSON garbled": answers(b'{"choices": [\x00\xff]}'),
    "a web page": answers(b"<html>It works!</html>", content_type=b"text/html; charset=utf-8"),
    "HTML for JSON": answers(b"<html>It works!</html>", content_type=b"application/json; charset=utf-8"),
    "no event": answers(b"<html>It works!</html>", content_type=SSE),
    "an event garbled": answers(b'data: {"choices": [{"ind\n\n', b"data: [DONE]\n\n", content_type=SSE),
    "an empty stream": answers(content_type=SSE),
}


@asynccontextmanager
async def gateway_over(*answering: Answering, **how: Any) -> AsyncIterator[tuple[RunningGateway, list[HandMadeEngine]]]:
    """Engines that answer so, in the order in which they are chosen."""
    async with AsyncExitStack() as stack:
        engines = [
            await stack.enter_async_context(hand_made_engine(placement=f"chat-aaaaa-{n}", answering=answers_so))
            for n, answers_so in enumerate(answering)
        ]
        gateway = await stack.enter_async_context(running_gateway(fleet_of(*(e.endpoint for e in engines)), **how))
        await until(lambda: len(gateway.replicas.candidates("chat")) == len(engines))
        yield gateway, engines


@pytest.mark.parametrize("bad", FAILURES.values(), ids=FAILURES.keys())
async def test_before_the_first_byte_another_replica_answers(bad: Answering) -> None:
    async with gateway_over(bad, GOOD) as (gateway, engines):
        answer = await gateway.ask()
        assert (answer.status_code, answer.json()) == (200, {"ok": True})
        assert [len(engine.calls) for engine in engines] == [1, 1]


@pytest.mark.parametrize("bad", FAILURES.values(), ids=FAILURES.keys())
async def test_without_another_replica_it_is_a_502_in_openai_s_shape(bad: Answering) -> None:
    async with gateway_over(bad) as (gateway, _):
        answer = await gateway.ask()
        assert answer.status_code == 502
        assert answer.json()["error"]["code"] == "engine_failed"


async def test_a_request_that_breaks_engines_does_not_go_through_all_of_them() -> None:
    async with gateway_over(fails_at_once, fails_at_once, GOOD) as (gateway, engines):
        assert (await gateway.ask()).status_code == 502
        assert [len(engine.calls) for engine in engines] == [1, 1, 0]


async def test_an_engine_that_drains_is_passed_by_and_its_word_passed_on_when_it_is_the_last() -> None:
    async with gateway_over(DRAINING, GOOD) as (gateway, engines):
        assert (await gateway.ask()).json() == {"ok": True}
        engines[1].answering = DRAINING
        answer = await gateway.ask()
        assert (answer.status_code, answer.json()) == (503, {"error": {"message": "draining"}})


@pytest.mark.parametrize("pieces", [(EVENT, EVENT), (EVENT, EVENT[:9])], ids=["between events", "in an event"])
@pytest.mark.parametrize("continued", [True, False])
async def test_a_stream_that_breaks_ends_with_an_error_event_and_no_done(
    pieces: tuple[bytes, ...], continued: bool
) -> None:
    replicas = (breaks_after(*pieces),) if continued else (breaks_after(*pieces), GOOD)
    async with gateway_over(*replicas, config=ServeConfig(continue_streams=continued)) as (gateway, engines):
        answer = await gateway.ask(stream=True)
        whole, _, last = answer.content.rpartition(b"\n\ndata: ")
        told = json.loads(last)["error"]
        assert answer.status_code == 200
        assert whole + b"\n\n" == (EVENT * pieces.count(EVENT) if continued else b"".join(pieces).rstrip() + b"\n\n")
        assert "fell off the bus" in told["message"]
        assert told["code"] == ("stream_interrupted" if continued else "engine_failed")
        assert b"[DONE]" not in answer.content
        assert not any(engine.calls for engine in engines[1:])  # what was begun is not begun again
        assert 'status="502"} 1.0' in (await gateway.http.get("/metrics")).text


async def test_any_other_body_that_breaks_ends_with_its_connection() -> None:
    begun = b'{"choices": [' + b" " * HELD_BYTES
    async with gateway_over(breaks_after(begun, content_type=b"application/json")) as (gateway, _):
        with pytest.raises(httpx.RemoteProtocolError):
            await gateway.ask()


@pytest.mark.parametrize("answering", [never_begins, never_ends], ids=["before the head", "in the stream"])
async def test_a_client_that_hangs_up_cancels_in_the_engine(answering: Answering) -> None:
    async with gateway_over(answering) as (gateway, (engine,)):
        reader, writer = await asyncio.open_connection("127.0.0.1", int(gateway.url.rpartition(":")[2]))
        body = b'{"model": "chat"}'
        writer.write(
            b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
        )
        await (until(lambda: engine.calls) if answering is never_begins else reader.readuntil(EVENT))
        writer.close()
        async with asyncio.timeout(5):
            await engine.cancelled.wait()
        await until(lambda: gateway.replicas.candidates("chat")[0].in_flight == 0)
        page = (await gateway.http.get("/metrics")).text
        assert 'deepinfer_client_disconnects_total{model_name="chat"} 1.0' in page
        assert (
            'status="499"} 1.0' in page and 'num_requests_running{model_name="chat",replica="chat-aaaaa-0"} 0.0' in page
        )


async def test_an_engine_gets_the_request_as_it_was_sent_but_not_the_clients_secrets() -> None:
    async with gateway_over(GOOD) as (gateway, (engine,)):
        body = b'{ "model":"chat",\n "odd" : [1.0, 1e2] }'
        headers = {
            "authorization": "Bearer secret",
            "cookie": "secret",
            "x-api-key": "secret",
            "connection": "keep-alive, x-hop",
            "x-hop": "this hop only",
            "x-mine": "kept",
            "x-request-id": "mine-1",
            "content-type": "application/x-www-form-urlencoded",
        }
        answer = await gateway.http.post("/v1/chat/completions?q=1", content=body, headers=headers)
        (call,) = engine.calls
        seen = dict(call.headers)
        assert (call.method, call.path, call.query, call.body) == ("POST", "/v1/chat/completions", b"q=1", body)
        assert answer.headers["x-request-id"] == "mine-1"
        assert (seen[b"x-mine"], seen[b"x-request-id"]) == (b"kept", b"mine-1")
        assert (seen[b"content-type"], seen[b"content-length"]) == (b"application/json", b"%d" % len(body))
        assert seen.keys().isdisjoint({b"authorization", b"cookie", b"x-api-key", b"x-hop", b"host", b"connection"})


async def test_a_request_id_that_could_hurt_is_replaced() -> None:
    async with gateway_over(GOOD) as (gateway, _):
        ids = [
            (await gateway.http.post("/tokenize", json={"model": "chat"}, headers={"x-request-id": bad})).headers
            for bad in ("", "a b", "x" * 200)
        ]
        assert all(len(headers["x-request-id"]) == 32 for headers in ids)


async def test_every_path_that_names_a_model_is_relayed() -> None:
    async with gateway_over(GOOD) as (gateway, (engine,)):
        paths = sorted({*RELAYED_PATHS, "/v1/what/comes/next"})
        for path in paths:
            assert (await gateway.http.post(path, json={"model": "org/model"})).status_code == 200
        assert [call.path for call in engine.calls] == paths


async def test_equal_replicas_share_the_requests() -> None:
    async with gateway_over(GOOD, GOOD) as (gateway, engines):
        for _ in range(6):
            await gateway.ask()
        assert [len(engine.calls) for engine in engines] == [3, 3]
