"""What the gateway counts, in a registry of its own. Labels are bounded: unknown models are "", odd paths "other"."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from time import perf_counter
from types import TracebackType

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from deepinfer.control_plane.gateway.asgi import Reply
from deepinfer.control_plane.router.replicas import Replicas

CLIENT_GONE = 499
"""The status counted when the client hung up first; nobody saw it."""
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)


class Metrics:
    """Made once a process; children are kept, because looking one up by its labels costs more than counting."""

    def __init__(self, replicas: Replicas) -> None:
        self._registry = registry = CollectorRegistry()
        requests = Counter(
            "deepinfer_requests_total",
            "Requests relayed to engines. An answer that broke off counts as 502, a client that left as 499.",
            ("model", "path", "status"),
            registry=registry,
        )
        seconds = Histogram(
            "deepinfer_request_seconds", "Until the answer's end.", ("model",), buckets=_SECONDS, registry=registry
        )
        first_byte = Histogram(
            "deepinfer_time_to_first_byte_seconds",
            "Until the engine's first bytes.",
            ("model",),
            buckets=_SECONDS,
            registry=registry,
        )
        in_flight = Gauge("deepinfer_requests_in_flight", "Requests at engines now.", ("model",), registry=registry)
        self.disconnects = Counter(
            "deepinfer_client_disconnects_total", "Clients that hung up before their answer's end.", registry=registry
        )
        self.requests = cache(requests.labels)
        self.seconds = cache(seconds.labels)
        self.first_byte = cache(first_byte.labels)
        self.in_flight = cache(in_flight.labels)
        registry.register(_ReplicaStates(replicas))
        ProcessCollector(registry=registry)

    def measure(self, path: str) -> Measured:
        return Measured(self, path)

    def page(self) -> Reply:
        return Reply(200, generate_latest(self._registry), content_type=CONTENT_TYPE_LATEST.encode())


class Measured:
    """One request, counted when its block ends."""

    __slots__ = ("_flying", "_metrics", "_model", "_path", "_started", "status")

    def __init__(self, metrics: Metrics, path: str) -> None:
        self.status = CLIENT_GONE
        self._metrics = metrics
        self._model = ""
        self._path = path
        self._flying: Gauge | None = None

    def __enter__(self) -> Measured:
        self._started = perf_counter()
        return self

    def goes_to(self, model: str) -> None:
        """The model is known here, so it may be a label."""
        self._model = model
        self._flying = self._metrics.in_flight(model)
        self._flying.inc()

    def first_byte(self) -> None:
        self._metrics.first_byte(self._model).observe(perf_counter() - self._started)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        metrics, model = self._metrics, self._model
        if self._flying is not None:
            self._flying.dec()
        metrics.requests(model, self._path, self.status).inc()
        metrics.seconds(model).observe(perf_counter() - self._started)
        if self.status == CLIENT_GONE:
            metrics.disconnects.inc()


class _ReplicaStates(Collector):
    """Asked when scraped, so it can never be stale."""

    def __init__(self, replicas: Replicas) -> None:
        self._replicas = replicas

    def collect(self) -> Iterator[GaugeMetricFamily]:
        family = GaugeMetricFamily(
            "deepinfer_replicas", "Replicas as this router sees them.", labels=("model", "state")
        )
        for (deployment, state), count in self._replicas.counts().items():
            family.add_metric((deployment, state), count)
        yield family
