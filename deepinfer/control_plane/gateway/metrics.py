"""What the gateway counts. Labels are bounded: unknown models are "", odd paths "other", and what is gone is forgotten.

All in the event loop's thread, so counting takes no locks.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest

from deepinfer.control_plane.gateway.access_log import AccessLog
from deepinfer.control_plane.gateway.asgi import Reply, Scope
from deepinfer.control_plane.gateway.exposition import Page, labelled
from deepinfer.control_plane.gateway.measured import Measured
from deepinfer.control_plane.gateway.routing_series import tell_routing
from deepinfer.control_plane.gateway.series import ModelSeries, ReplicaSeries, tell_models, tell_replicas
from deepinfer.control_plane.router.replicas import Replicas

if TYPE_CHECKING:
    from deepinfer.control_plane.gateway.spans import Spans

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
_FEW = 64


class Metrics:
    """Made once a process. `ejected_now` tells which replicas get no requests for now, for their failures."""

    def __init__(self, replicas: Replicas, access_log: AccessLog | None = None, spans: Spans | None = None) -> None:
        self.access_log = access_log
        self.spans = spans
        self.ejected_now: Callable[[], Iterable[str]] = tuple
        self._of_fleet = replicas
        self._models: dict[str, ModelSeries] = {}
        self._replicas: dict[tuple[str, str], ReplicaSeries] = {}  # by model and placement
        self._ejections: Counter[str] = Counter()
        self._enough = _FEW
        self._process = CollectorRegistry()
        ProcessCollector(registry=self._process)

    def measure(self, path: str, request_id: bytes, scope: Scope) -> Measured:
        """`path` is a label: one of a bounded set."""
        return Measured(self, path, request_id, scope)

    def model(self, name: str) -> ModelSeries:
        """Of a known model, or of ""."""
        series = self._models.get(name)
        if series is None:
            self._make_room()
            series = self._models[name] = ModelSeries(name)
        return series

    def replica(self, model: str, placement: str) -> ReplicaSeries:
        series = self._replicas.get((model, placement))
        if series is None:
            self._make_room()
            series = self._replicas[model, placement] = ReplicaSeries(model, placement)
        return series

    def ejected(self, placement: str) -> None:
        self._ejections[placement] += 1

    def page(self) -> Reply:
        self._forget_gone()
        page = Page()
        tell_models(page, self._models.values())
        tell_replicas(page, self._replicas.values())
        tell_routing(page, self._of_fleet.outlooks(), asyncio.get_running_loop().time())
        page.counter(
            "deepinfer_ejections_total",
            "How often a replica was given no requests for a while, for its failures.",
            ((labelled(replica=placement), count) for placement, count in self._ejections.items()),
        )
        page.gauge(
            "deepinfer_replicas_ejected",
            "Replicas that are given no requests now, for their failures.",
            ((labelled(replica=placement), 1) for placement in self.ejected_now()),
        )
        page.gauge(
            "deepinfer_replicas",
            "Replicas as this router sees them.",
            (
                (labelled(model_name=deployment, state=state), count)
                for (deployment, state), count in self._of_fleet.counts().items()
            ),
        )
        return Reply(200, page.encoded() + generate_latest(self._process), content_type=CONTENT_TYPE)

    def _make_room(self) -> None:
        """Also where nobody ever asks for the page."""
        if len(self._models) + len(self._replicas) >= self._enough:
            self._forget_gone()
            self._enough = _FEW + 2 * (len(self._models) + len(self._replicas))

    def _forget_gone(self) -> None:
        placed = self._of_fleet.placed()
        for name in [name for name in self._models if name and not self._of_fleet.knows(name)]:
            del self._models[name]
        for model, placement in [key for key in self._replicas if key[1] not in placed]:
            del self._replicas[model, placement]
        for placement in self._ejections.keys() - placed:
            del self._ejections[placement]
