"""NVIDIA Dynamo's KV router with its defaults: prefill blocks still to compute and blocks in use, added up.

    cost = max(0, (prefill tokens under way + the prompt's) / block size - overlap) + blocks in use, with this prompt's

Both loads are of the router's own book, which a request enters when it is routed (AddRequest), whose prefill is over at
its first token (MarkPrefillCompleted) and which it leaves at its end (Free). Equal costs are split by chance.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

from benchmarks.routing_sim.policy import Asked, best
from benchmarks.routing_sim.replica import Replica
from benchmarks.routing_sim.residency import Residency


@dataclass(eq=False)
class ActiveSequences:
    """Of one worker. A block that several requests share counts once."""

    prefill_tokens: int = 0
    blocks: Counter[int] = field(default_factory=Counter)

    def cost(self, names: Sequence[int], tokens: int, overlap: int, block_size: int) -> float:
        """Of one more request."""
        prefill = max(0.0, (self.prefill_tokens + tokens) / block_size - overlap)
        return prefill + len(self.blocks) + sum(name not in self.blocks for name in names)

    def add(self, names: Sequence[int], prefill_tokens: int) -> None:
        self.prefill_tokens += prefill_tokens
        self.blocks.update(names)

    def free(self, names: Sequence[int]) -> None:
        for name in names:
            self.blocks[name] -= 1
            if not self.blocks[name]:
                del self.blocks[name]


class DynamoCost:
    def __init__(self, fleet: Sequence[Replica], chance: Random) -> None:
        self._residency = Residency(fleet)
        self._block_size = fleet[0].args.block_size
        self._workers = [ActiveSequences() for _ in fleet]
        self._chance = chance
        self._under_way: dict[Asked, tuple[ActiveSequences, int]] = {}  # and the prefill tokens booked for it

    def choose(self, asked: Asked) -> int:
        overlaps = self._residency.overlaps(asked.names)
        costs = [
            worker.cost(asked.names, asked.tokens, overlap, self._block_size)
            for worker, overlap in zip(self._workers, overlaps, strict=True)
        ]
        place = best(costs, self._chance)
        worker, prefill = self._workers[place], asked.tokens - overlaps[place] * self._block_size
        worker.add(asked.names, prefill)
        self._under_way[asked] = worker, prefill
        return place

    def began(self, asked: Asked, cached_tokens: int) -> None:
        worker, prefill = self._under_way[asked]
        worker.prefill_tokens -= prefill
        self._under_way[asked] = worker, 0

    def ended(self, asked: Asked) -> None:
        worker, prefill = self._under_way.pop(asked)
        worker.prefill_tokens -= prefill
        worker.free(asked.names)
