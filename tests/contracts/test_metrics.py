"""What is counted of a request, on each way in which one can end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
from prometheus_client.parser import text_string_to_metric_families

from deepinfer.control_plane.gateway.app import Gateway
from deepinfer.control_plane.gateway.asgi import App, Message, Send
from deepinfer.control_plane.gateway.exposition import Page, labelled
from deepinfer.control_plane.gateway.front_door import FrontDoor
from deepinfer.control_plane.gateway.metrics import Metrics
from deepinfer.control_plane.gateway.parts import Parts
from deepinfer.control_plane.router.replicas import Replicas
from deepinfer.engine_shim.frames import AnswerFrame, Body, EngineCall, Head
from deepinfer.fleet.snapshot import Snapshot
from tests.contracts.test_gateway_breakage import DRAINING, EVENT, SSE, breaks_after, fails_at_once, gateway_over
from tests.decisions.test_usage import DONE, LAST, USAGE, WHOLE
from tests.gateway_parts import RunningGateway, fleet_of, management, running_gateway, until
from tests.hand_made_engine import Answering, answers

CHAT = "/v1/chat/completions"
STREAM = answers(EVENT, LAST, USAGE, DONE, content_type=SSE)
TELLING = ("status", "reason", "finished_reason")
REFUSED = answers(b'{"error": {"message": "no"}}', status=400)


def counts(page: str) -> dict[str, float]:
    """What is not zero, by name and the labels that tell the cases apart; buckets and sums left out.

    What the router knows of its replicas has tests of its own (test_kv_routing.py).
    """
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(page):
        if family.name.startswith("deepinfer_router_"):
            continue
        for sample in family.samples:
            if sample.name.startswith("deepinfer_") and not sample.name.endswith(("_bucket", "_sum")) and sample.value:
                told = [
                    sample.labels[name] for name in ("status", "reason", "finished_reason") if name in sample.labels
                ]
                name = ":".join((sample.name.removeprefix("deepinfer_"), *told))
                found[name] = found.get(name, 0) + sample.value
    return found


async def scraped(gateway: RunningGateway) -> dict[str, float]:
    seen = counts((await gateway.http.get("/metrics")).text)
    del seen["replicas"]
    return seen


@pytest.mark.parametrize(
    ("answering", "expected"),
    [
        pytest.param(
            (STREAM,),
            {
                "requests_total:200": 1,
                "request_success_total:length": 1,
                "prompt_tokens_total": 13,
                "generation_tokens_total": 32,
                "time_to_first_token_seconds_count": 1,
                "inter_token_latency_seconds_count": 31,
                "request_time_per_output_token_seconds_count": 1,
            },
            id="a stream",
        ),
        pytest.param(
            (answers(EVENT, EVENT, EVENT, DONE, content_type=SSE),),
            {
                "requests_total:200": 1,
                "request_success_total:stop": 1,
                "generation_tokens_total": 3,
                "time_to_first_token_seconds_count": 1,
                "inter_token_latency_seconds_count": 2,
                "request_time_per_output_token_seconds_count": 1,
            },
            id="a stream that tells no usage",
        ),
        pytest.param(
            (answers(WHOLE),),
            {
                "requests_total:200": 1,
                "request_success_total:stop": 1,
                "prompt_tokens_total": 3,
                "generation_tokens_total": 5,
            },
            id="a whole answer",
        ),
        pytest.param((REFUSED,), {"requests_total:400": 1}, id="refused by the engine"),
        pytest.param(
            (fails_at_once, answers(WHOLE)),
            {
                "requests_total:200": 1,
                "retries_total:broken": 1,
                "request_success_total:stop": 1,
                "prompt_tokens_total": 3,
                "generation_tokens_total": 5,
            },
            id="tried again after a failure",
        ),
        pytest.param(
            (DRAINING, DRAINING),
            {"requests_total:503": 1, "retries_total:status": 1, "request_success_total:error": 1},
            id="tried again after a status, in vain",
        ),
        pytest.param(
            (breaks_after(EVENT),),
            {
                "requests_total:502": 1,
                "request_success_total:error": 1,
                "generation_tokens_total": 1,
                "time_to_first_token_seconds_count": 1,
            },
            id="broken in mid-stream",
        ),
    ],
)
async def test_what_a_request_counts_as(answering: tuple[Answering, ...], expected: dict[str, float]) -> None:
    async with gateway_over(*answering) as (gateway, _):
        await gateway.ask(stream=True)
        every = {"e2e_request_latency_seconds_count": 1, "request_queue_time_seconds_count": 1}
        assert await scraped(gateway) == {**expected, **every}


async def test_a_refused_request_counts_by_its_reason() -> None:
    async with running_gateway(fleet_of(None)) as gateway:
        await gateway.ask()
        await gateway.ask(model="gpt-9")
        await gateway.http.post(CHAT, content=b"{")
        assert await scraped(gateway) == {
            "requests_total:503": 1,
            "requests_total:404": 1,
            "requests_total:400": 1,
            "rejected_total:no_ready_replica": 1,
            "rejected_total:model_not_found": 1,
            "rejected_total:invalid_request_error": 1,
            "e2e_request_latency_seconds_count": 3,
        }


async def test_a_client_that_leaves_counts_as_such_and_what_it_got() -> None:
    async def slow(stream: int, call: EngineCall) -> AsyncIterator[AnswerFrame]:
        yield Head(stream, 200, ((b"content-type", SSE),))
        for _ in range(3):
            yield Body(stream, EVENT)
        await asyncio.Event().wait()

    async with gateway_over(slow) as (gateway, (engine,)):
        async with gateway.http.stream("POST", CHAT, json={"model": "chat"}) as answer:
            received = b""
            async for piece in answer.aiter_raw():
                received += piece
                if received.count(b"\n\n") == 3:
                    break
            assert (await scraped(gateway))["num_requests_running"] == 1
        await engine.cancelled.wait()
        await until(lambda: gateway.replicas.candidates("chat")[0].in_flight == 0)
        assert await scraped(gateway) == {
            "requests_total:499": 1,
            "request_queue_time_seconds_count": 1,
            "client_disconnects_total": 1,
            "request_success_total:abort": 1,
            "generation_tokens_total": 2,
            "time_to_first_token_seconds_count": 1,
            "inter_token_latency_seconds_count": 1,
            "request_time_per_output_token_seconds_count": 1,
            "e2e_request_latency_seconds_count": 1,
        }


async def test_unknown_models_and_paths_make_no_series() -> None:
    async with Replicas() as replicas:
        replicas.update(Snapshot())
        gateway = FrontDoor(Gateway(Parts.plain(replicas), management()))
        for n in range(10_000):
            await asked(gateway, f"/v1/path-{n}", f"no-such-{n}")
        page: list[Message] = []
        await gateway(
            {"type": "http", "method": "GET", "path": "/metrics", "query_string": b"", "headers": []},
            never,
            sent_to(page),
        )
        seen = counts(page[1]["body"].decode())
        assert seen == {
            "requests_total:404": 10_000,
            "rejected_total:model_not_found": 10_000,
            "e2e_request_latency_seconds_count": 10_000,
        }
        assert len(page[1]["body"].splitlines()) < 200


async def test_what_is_gone_is_forgotten_asked_for_or_not() -> None:
    async with gateway_over(STREAM) as (gateway, _):
        await gateway.ask(stream=True)
        assert "chat-aaaaa-0" in (await gateway.http.get("/metrics")).text
        gateway.replicas.update(Snapshot())
        assert "chat" not in (await gateway.http.get("/metrics")).text
        metrics = Metrics(gateway.replicas)
        for n in range(1000):
            with metrics.measure(CHAT, b"id", {}) as measured:
                measured.goes_to(f"gone-{n}")
                measured.sent_to(f"gone-{n}-aaaaa-0")
        assert len(metrics._models) + len(metrics._replicas) < 200


async def test_the_queue_continuations_and_ejections() -> None:
    async with Replicas() as replicas:
        replicas.update(fleet_of(None, None))
        metrics = Metrics(replicas)
        with metrics.measure(CHAT, b"id", {}) as measured:
            measured.goes_to("chat")
            measured.queued(1)
            assert seen_of(metrics)["num_requests_waiting"] == 1
            measured.admitted(0.5)
            measured.sent_to("chat-aaaaa-0")
            measured.first_byte(True)
            measured.failed("broken")
            metrics.ejected("chat-aaaaa-0")
            metrics.ejected_now = lambda: ("chat-aaaaa-0",)
            measured.continued()
            measured.sent_to("chat-aaaaa-1")
            assert seen_of(metrics)["num_requests_running"] == 1
            measured.status = 200
        assert seen_of(metrics) == {
            "requests_total:200": 1,
            "request_queue_time_seconds_count": 1,
            "retries_total:broken": 1,
            "continued_total": 1,
            "request_success_total:stop": 1,
            "time_to_first_token_seconds_count": 1,
            "e2e_request_latency_seconds_count": 1,
            "ejections_total": 1,
            "replicas_ejected": 1,
        }


async def test_who_leaves_the_queue_waits_no_longer() -> None:
    async with Replicas() as replicas:
        replicas.update(fleet_of(None))
        metrics = Metrics(replicas)
        with metrics.measure(CHAT, b"id", {}) as measured:
            measured.goes_to("chat")
            measured.queued(1)
        assert seen_of(metrics) == {
            "requests_total:499": 1,
            "client_disconnects_total": 1,
            "e2e_request_latency_seconds_count": 1,
        }


async def test_what_nobody_foresaw_is_no_client_that_left() -> None:
    async with Replicas() as replicas:
        metrics = Metrics(replicas)
        with suppress(ZeroDivisionError), metrics.measure(CHAT, b"id", {}):
            raise ZeroDivisionError
        seen = seen_of(metrics)
        assert seen["requests_total:500"] == 1 and "client_disconnects_total" not in seen


def test_odd_labels_are_written_so_that_they_are_read_back() -> None:
    odd = 'a"b\\c\nd'
    page = Page()
    page.counter("some_total", "Some.", [(labelled(name=odd), 2)])
    (family,) = text_string_to_metric_families(page.encoded().decode())
    assert [(sample.labels, sample.value) for sample in family.samples] == [({"name": odd}, 2.0)]


def seen_of(metrics: Metrics) -> dict[str, float]:
    seen = counts(metrics.page().body.decode())
    seen.pop("replicas", None)
    return seen


async def asked(gateway: App, path: str, model: str) -> None:
    """Without a socket: ten thousand of them are wanted."""
    body = iter([{"type": "http.request", "body": b'{"model": "%s"}' % model.encode()}])

    async def receive() -> Message:
        return next(body, None) or await never()

    headers = [(b"host", b"localhost")]
    scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": headers}
    await gateway(scope, receive, sent_to([]))


async def never() -> Message:
    return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]


def sent_to(messages: list[Message]) -> Send:
    async def send(message: Message) -> None:
        messages.append(message)

    return send
