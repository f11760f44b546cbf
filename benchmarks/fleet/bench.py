"""What every phase works with: the processes, what lies in etcd, what the nodes tell, and the management API."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx

from benchmarks.fleet.ledger import Ledger
from benchmarks.fleet.processes import Processes
from benchmarks.fleet.sightings import Sightings
from benchmarks.fleet.size import Size
from benchmarks.fleet.until import RunEnded, until

_PATIENCE_SECONDS = 300.0
_QUIET_SECONDS = 2.0


@dataclass(frozen=True)
class Bench:
    """One run."""

    size: Size
    processes: Processes
    ledger: Ledger
    sightings: Sightings
    api: httpx.AsyncClient
    generations: Counter[str] = field(default_factory=Counter)

    async def deploy(self, name: str, replicas: int) -> None:
        body = {"name": name, "model": name, "engine": "sim", "device": "auto", "replicas": replicas}
        _taken(await self.api.post("/v1/deployments", json=body))
        self.generations[name] = 1

    async def amend(self, name: str, changes: dict[str, Any]) -> None:
        _taken(await self.api.patch(f"/v1/deployments/{name}", json=changes))

    async def all_placed(self, replicas: int) -> float:
        """When that many placements lay in etcd."""
        placed = self.ledger.placements
        return await until(
            lambda: len(placed) >= replicas, self.ledger.news, _PATIENCE_SECONDS, lambda: f"{len(placed)} placed"
        )

    async def all_ready(self, replicas: int) -> float:
        """When that many statuses said so."""
        ready = self.ledger.ready
        return await until(
            lambda: len(ready) >= replicas, self.ledger.news, _PATIENCE_SECONDS, lambda: f"{len(ready)} ready"
        )

    async def settled(self) -> None:
        """All that is placed is ready, and nobody writes."""
        ledger = self.ledger
        await until(
            lambda: ledger.ready == ledger.placements and ledger.quiet_seconds() >= _QUIET_SECONDS,
            ledger.news,
            _PATIENCE_SECONDS,
            lambda: (
                f"{len(ledger.placements - ledger.ready)} of {len(ledger.placements)} replicas are not ready, "
                f"the last write was {ledger.quiet_seconds():.1f} s ago"
            ),
        )


def _taken(answer: httpx.Response) -> None:
    if not answer.is_success:
        raise RunEnded(f"serve refused {answer.request.method} {answer.request.url}: {answer.text}")
