"""Which replica holds which blocks, for the peers' policies: exact but for the delay of the news."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from typing import Final

from benchmarks.routing_sim.replica import Replica
from deepinfer.engine_shim.state_wire import EngineState

_GROUP: Final = 0
"""The only one that simulated engines have."""


class Residency:
    """A bit for each replica, by block."""

    def __init__(self, fleet: Sequence[Replica]) -> None:
        self._replicas = len(fleet)
        self._holders: defaultdict[int, int] = defaultdict(int)
        for replica in fleet:
            replica.tell(partial(self.told, 1 << replica.place))

    def told(self, bit: int, state: EngineState) -> None:
        """The first message is a snapshot, and changes follow."""
        for name in state.removed.get(_GROUP, ()):  # first: a block may have gone and come back
            self._holders[name] &= ~bit
            if not self._holders[name]:
                del self._holders[name]
        for name in state.stored.get(_GROUP, ()):
            self._holders[name] |= bit

    def overlaps(self, names: Sequence[int]) -> list[int]:
        """How many of a prompt's blocks, from the first on, each replica holds."""
        found, left = [len(names)] * self._replicas, (1 << self._replicas) - 1
        for number, name in enumerate(names):
            stay = left & self._holders.get(name, 0)
            gone, left = left & ~stay, stay
            while gone:
                found[gone.bit_length() - 1] = number
                gone ^= 1 << (gone.bit_length() - 1)
            if not left:
                break
        return found
