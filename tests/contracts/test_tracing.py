"""Traces: the client's goes on through the gateway to the engine, and a real collector hears of it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from deepinfer.control_plane.gateway.metrics import Metrics
from deepinfer.control_plane.gateway.tracing import CannotTrace, asked_by, tracing
from deepinfer.control_plane.router.replicas import Replicas
from deepinfer.engine_shim.frames import EngineCall
from tests.contracts.test_gateway_breakage import GOOD, fails_at_once, gateway_over
from tests.contracts.test_metrics import CHAT, STREAM
from tests.gateway_parts import RunningGateway
from tests.hand_made_engine import Answering, HandMadeEngine
from tests.trace_collector import TraceCollector, attributes, trace_collector

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
CONTEXT = {"traceparent": f"00-{TRACE}-{CALLER}-01", "tracestate": "vendor=value"}


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[TraceCollector]:
    with trace_collector() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint)
        yield collector


@asynccontextmanager
async def traced_gateway(*answering: Answering) -> AsyncIterator[tuple[RunningGateway, list[HandMadeEngine]]]:
    """At its end everything was sent to the collector."""
    async with tracing(asked=False) as spans, gateway_over(*answering, spans=spans) as running:
        yield running


async def test_a_trace_goes_on_from_the_client_to_the_engine_that_answered(collector: TraceCollector) -> None:
    async with traced_gateway(fails_at_once, STREAM) as (gateway, engines):
        headers = {**CONTEXT, "x-request-id": "mine-1"}
        await gateway.http.post(CHAT, json={"model": "chat", "stream": True}, headers=headers)
    assert collector.services == {"deepinfer"}
    request = collector.named(f"POST {CHAT}")
    failed, answered = (span for span in collector.spans if span.name == "chat chat")
    assert {span.trace_id.hex() for span in collector.spans} == {TRACE}
    assert request.parent_span_id.hex() == CALLER
    assert failed.parent_span_id == answered.parent_span_id == request.span_id
    told = attributes(request)
    assert 0 < told.pop("gen_ai.response.time_to_first_chunk") < 10
    assert [value.string_value for value in told.pop("gen_ai.response.finish_reasons").values] == ["length"]
    assert told == {
        "http.request.method": "POST",
        "http.route": CHAT,
        "http.response.status_code": 200,
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "chat",
        "gen_ai.usage.input_tokens": 13,
        "gen_ai.usage.output_tokens": 32,
        "deepinfer.request_id": "mine-1",
        "deepinfer.replica": "chat-aaaaa-1",
    }
    assert (attributes(failed)["error.type"], attributes(failed)["deepinfer.replica"]) == ("broken", "chat-aaaaa-0")
    (call,) = engines[1].calls
    context = [header for header in call.headers if header[0].startswith(b"trace")]
    assert dict(context) == {
        b"traceparent": f"00-{TRACE}-{answered.span_id.hex()}-01".encode(),
        b"tracestate": b"vendor=value",
    }
    assert len(context) == 2


@pytest.mark.parametrize("headers", [{}, {"traceparent": "not one"}], ids=["no context", "a broken one"])
async def test_without_a_context_a_trace_begins_here(collector: TraceCollector, headers: dict[str, str]) -> None:
    async with traced_gateway(GOOD) as (gateway, engines):
        await gateway.http.post("/v1/odd", json={"model": "chat"}, headers=headers)
        await gateway.ask(model="gpt-9")
    request, refused = collector.named("POST other"), collector.named(f"POST {CHAT}")
    assert not request.parent_span_id and request.trace_id != refused.trace_id
    assert attributes(refused)["error.type"] == "model_not_found"
    (traceparent,) = (value for name, value in engines[0].calls[0].headers if name == b"traceparent")
    assert traceparent.split(b"-")[1].decode() == request.trace_id.hex()


async def test_the_time_in_the_queue_is_a_span(collector: TraceCollector) -> None:
    async with tracing(asked=False) as spans, Replicas() as replicas:
        metrics = Metrics(replicas, spans=spans)
        with metrics.measure(CHAT, b"id", {"method": "POST", "headers": []}) as measured:
            measured.queued(3)
            measured.admitted(0.0)
        with metrics.measure(CHAT, b"id", {"method": "POST", "headers": []}) as measured:
            measured.queued(4)  # and the client leaves
    positions = [attributes(span) for span in collector.spans if span.name == "queue"]
    assert positions == [{"deepinfer.queue.position": 3}, {"deepinfer.queue.position": 4}]


async def test_without_tracing_the_clients_context_reaches_the_engine_as_it_is() -> None:
    async with gateway_over(GOOD) as (gateway, (engine,)):
        await gateway.http.post(CHAT, json={"model": "chat"}, headers=CONTEXT)
        sent = dict(engine.calls[0].headers)
        assert {name: sent[name.encode()].decode() for name in CONTEXT} == CONTEXT
        with Metrics(gateway.replicas).measure(CHAT, b"id", {}) as measured:
            call = EngineCall("POST", CHAT)
            assert measured.traced(call) is call


def test_without_tracing_nothing_of_it_is_imported() -> None:
    told = (
        "import sys, deepinfer.control_plane.main; print([m for m in sys.modules if m.startswith('opentelemetry.sdk')])"
    )
    run = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout.strip() == "[]"


async def test_a_missing_extra_is_told_with_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "deepinfer.control_plane.gateway.spans", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)  # as an import that fails leaves it
    with pytest.raises(CannotTrace, match=r"\[serve\] tracing asks .* pip install 'deepinfer\[tracing\]'"):
        async with tracing(asked=True):
            raise AssertionError("imported what is not there")


async def test_grpc_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    with pytest.raises(CannotTrace, match="OTEL_EXPORTER_OTLP_PROTOCOL is grpc"):
        async with tracing(asked=True):
            raise AssertionError("took it")


@pytest.mark.parametrize(
    ("environ", "asks"),
    [
        ({}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, "OTEL_EXPORTER_OTLP_ENDPOINT"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318"}, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://c:4318"}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_SDK_DISABLED": "true"}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_TRACES_EXPORTER": "none"}, None),
    ],
)
def test_who_asks_for_traces(environ: dict[str, str], asks: str | None) -> None:
    assert asked_by(environ) == asks
