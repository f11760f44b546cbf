"""llm-d's precise prefix cache profile with its sample weights: a sum of three scores from 0 to 1, the highest wins.

    2 * (share of the prompt's blocks that are there) + (1 - KV cache usage) + (queue: 0 the longest, 1 the shortest)

Usage and queue are of the engines' metrics, scraped every 50 ms. Equal scores are split by chance.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from random import Random
from typing import Final

from benchmarks.routing_sim.policy import Asked, Stateless, best
from benchmarks.routing_sim.replica import Replica
from benchmarks.routing_sim.residency import Residency

SCRAPE_SECONDS: Final = 0.05
_PREFIX, _KV, _QUEUE = 2.0, 1.0, 1.0


def scores(
    overlaps: Sequence[int], prompt_blocks: int, kv_usages: Sequence[float], queues: Sequence[int]
) -> list[float]:
    """Of each endpoint."""
    longest, shortest = max(queues), min(queues)
    return [
        _PREFIX * (overlap / prompt_blocks if prompt_blocks else 0.0)
        + _KV * max(0.0, 1.0 - usage)
        + _QUEUE * ((longest - queue) / (longest - shortest) if longest > shortest else 1.0)
        for overlap, usage, queue in zip(overlaps, kv_usages, queues, strict=True)
    ]


class LlmDScore(Stateless):
    def __init__(self, fleet: Sequence[Replica], chance: Random) -> None:
        self._residency = Residency(fleet)
        self._fleet, self._chance = fleet, chance
        self._loop = asyncio.get_running_loop()
        self._scraped_at = -1.0
        self._kv_usages: list[float] = []
        self._queues: list[int] = []

    def choose(self, asked: Asked) -> int:
        self._scrape()
        overlaps = self._residency.overlaps(asked.names)
        found = scores(overlaps, len(asked.names), self._kv_usages, self._queues)
        return best([-score for score in found], self._chance)

    def _scrape(self) -> None:
        """When the last metrics are too old. Fresh at the first request after a pause: to their advantage."""
        if self._scraped_at >= 0 and self._loop.time() < self._scraped_at + SCRAPE_SECONDS:
            return
        self._scraped_at = self._loop.time()
        loads = [replica.engine.load() for replica in self._fleet]
        self._queues = [load.waiting for load in loads]
        self._kv_usages = [
            load.kv_blocks_used / replica.args.kv_blocks for load, replica in zip(loads, self._fleet, strict=True)
        ]
