"""The simulated engine's load and totals under vLLM's names, as a Prometheus page. Nothing is kept here."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from deepinfer.engine_shim.engines.sim import SimEngine


def metrics_page(registry: CollectorRegistry) -> bytes:
    return generate_latest(registry)


def metrics_of(engine: SimEngine, name: str) -> CollectorRegistry:
    """`name` is what its model is called in the labels."""
    registry = CollectorRegistry()
    registry.register(_SimMetrics(engine, name))
    return registry


class _SimMetrics(Collector):
    def __init__(self, engine: SimEngine, name: str) -> None:
        self._engine = engine
        self._labels = {"model_name": name, "engine": "0"}

    def collect(self) -> Iterator[Metric]:
        load, totals, info = self._engine.load(), self._engine.totals, self._engine.info
        yield self._gauge("num_requests_running", load.running)
        yield self._gauge("num_requests_waiting", load.waiting)
        yield self._gauge("kv_cache_usage_perc", load.kv_blocks_used / info.kv_blocks)
        yield self._counter("prompt_tokens", totals.prompt_tokens)
        yield self._counter("generation_tokens", totals.tokens)
        yield self._counter("prefix_cache_queries", totals.prompt_tokens)
        yield self._counter("prefix_cache_hits", totals.cached_tokens)
        yield self._histogram("inter_token_latency_seconds", totals.gaps, totals.gap_seconds)
        yield self._histogram("request_prefill_time_seconds", totals.prompts, totals.prefill_seconds)
        size, blocks = str(info.kv_block_size), str(info.kv_blocks)
        yield self._gauge("cache_config_info", 1, block_size=size, num_gpu_blocks=blocks)

    def _gauge(self, name: str, value: float, **labels: str) -> Metric:
        return self._filled(GaugeMetricFamily(f"vllm:{name}", name), value, labels)

    def _counter(self, name: str, value: float) -> Metric:
        return self._filled(CounterMetricFamily(f"vllm:{name}", name), value, {})

    def _filled(self, family: Metric, value: float, labels: dict[str, str]) -> Metric:
        suffix = "_total" if family.type == "counter" else ""
        family.add_sample(family.name + suffix, self._labels | labels, value)
        return family

    def _histogram(self, name: str, count: int, total: float) -> Metric:
        """Its mean is all that is known."""
        family = HistogramMetricFamily(f"vllm:{name}", name, labels=list(self._labels))
        family.add_metric(list(self._labels.values()), [("+Inf", count)], total)
        return family
