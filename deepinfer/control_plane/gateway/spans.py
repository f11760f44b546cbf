"""Requests as OpenTelemetry's spans: one for each, and below it its time in the queue and every attempt at a replica.

A request's span is a child of what the client's `traceparent` names, an attempt's is the parent of what its engine
tells. Attributes are those of OpenTelemetry's conventions for HTTP servers and for generative AI. Never prompts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from deepinfer.control_plane.gateway.asgi import Headers, Scope
from deepinfer.engine_shim.frames import EngineCall

if TYPE_CHECKING:
    from deepinfer.control_plane.gateway.measured import Measured

_CONTEXT = (b"traceparent", b"tracestate")
_OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/messages": "chat",
    "/v1/responses": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}
_propagator = TraceContextTextMapPropagator()


class Spans:
    """Sent in batches by a thread of OpenTelemetry's, which its own variables configure."""

    def __init__(self) -> None:
        resource = Resource.create()
        if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
            resource = resource.merge(Resource({SERVICE_NAME: "deepinfer"}))
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("deepinfer.gateway")

    def begin(self, scope: Scope, path: str) -> RequestSpans:
        return RequestSpans(self._tracer, scope, path)

    def close(self) -> None:
        """Sends what is left."""
        self._provider.shutdown()


class RequestSpans:
    """Of one request; told of its steps by `Measured`."""

    def __init__(self, tracer: Tracer, scope: Scope, path: str) -> None:
        self._tracer = tracer
        self._operation = _OPERATIONS.get(path, path)
        self._queue: Span | None = None
        self._attempt: Span | None = None
        self._span = tracer.start_span(
            f"{scope['method']} {path}",
            _propagator.extract(_context_in(scope["headers"])),
            SpanKind.SERVER,
            {"http.request.method": scope["method"], "http.route": path, "gen_ai.operation.name": self._operation},
        )
        self._below = set_span_in_context(self._span)

    def queued(self, position: int) -> None:
        self._queue = self._tracer.start_span("queue", self._below, attributes={"deepinfer.queue.position": position})

    def admitted(self) -> None:
        if self._queue is not None:
            self._queue.end()
            self._queue = None

    def sent_to(self, placement: str, model: str) -> None:
        self._end_attempt()
        self._attempt = self._tracer.start_span(
            f"{self._operation} {model}",
            self._below,
            SpanKind.CLIENT,
            {
                "gen_ai.operation.name": self._operation,
                "gen_ai.request.model": model,
                "deepinfer.replica": placement,
            },
        )

    def failed(self, reason: str) -> None:
        if self._attempt is not None:
            self._attempt.set_attribute("error.type", reason)
            self._attempt.set_status(Status(StatusCode.ERROR))
            self._end_attempt()

    def continued(self) -> None:
        self._span.add_event("continued on another replica")

    def carried_by(self, call: EngineCall) -> EngineCall:
        """The call, with the attempt's context instead of the client's."""
        if self._attempt is None:
            return call
        context: dict[str, str] = {}
        _propagator.inject(context, set_span_in_context(self._attempt))
        kept = (header for header in call.headers if header[0] not in _CONTEXT)
        return replace(call, headers=(*kept, *((name.encode(), value.encode()) for name, value in context.items())))

    def end(self, request: Measured) -> None:
        self.admitted()
        self._end_attempt()
        span = self._span
        span.set_attribute("http.response.status_code", request.status)
        span.set_attribute("deepinfer.request_id", request.request_id.decode())
        if request.model:
            span.set_attribute("gen_ai.request.model", request.model)
        if request.replica:
            span.set_attribute("deepinfer.replica", request.replica)
            span.set_attribute("gen_ai.usage.input_tokens", request.tokens.prompt)
            span.set_attribute("gen_ai.usage.output_tokens", request.tokens.completion)
        if request.finished:
            span.set_attribute("gen_ai.response.finish_reasons", [request.finished])
        if request.first_seconds:
            span.set_attribute("gen_ai.response.time_to_first_chunk", request.first_seconds)
        if request.status >= 400:
            span.set_attribute("error.type", request.reason or str(request.status))
        if request.status >= 500:
            span.set_status(Status(StatusCode.ERROR))
        span.end()

    def _end_attempt(self) -> None:
        if self._attempt is not None:
            self._attempt.end()
            self._attempt = None


def _context_in(headers: Headers) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in headers:
        if name in _CONTEXT:
            found.setdefault(name.decode(), []).append(value.decode("latin-1"))
    return found
