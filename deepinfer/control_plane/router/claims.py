"""Blocks that an engine's running requests are about to fill, counted from the moment a request goes there.

What the engine says comes a tenth of a second later, and prefill takes time: of a burst of requests that begin alike,
all but the first would find nothing anywhere. A claim ends with the second word of the engine after its request's end:
the first one may have been on its way before.
"""

from __future__ import annotations

from collections.abc import Sequence


class Claims:
    """On one engine, by one gateway."""

    __slots__ = ("_counts", "_ended", "_ended_before")

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self._ended: list[Sequence[int]] = []  # since the engine's last word
        self._ended_before: list[Sequence[int]] = []

    def __len__(self) -> int:
        return len(self._counts)

    def claim(self, names: Sequence[int]) -> None:
        counts = self._counts
        for name in names:
            counts[name] = counts.get(name, 0) + 1

    def end(self, names: Sequence[int]) -> None:
        """Their request has ended."""
        if names:
            self._ended.append(names)

    def heard(self) -> None:
        """The engine said something."""
        for names in self._ended_before:
            self.drop(names)
        self._ended, self._ended_before = [], self._ended

    def clear(self) -> None:
        """The engine began anew, or was lost: nothing will be filled."""
        self._counts.clear()
        self._ended, self._ended_before = [], []

    def more(self, chain: Sequence[int], held: int) -> int:
        """How many blocks of `chain` are claimed from block `held` on, without a gap."""
        counts = self._counts
        if not counts:
            return 0
        for number in range(held, len(chain)):
            if chain[number] not in counts:
                return number - held
        return len(chain) - held

    def drop(self, names: Sequence[int]) -> None:
        """At once."""
        counts = self._counts
        for name in names:
            left = counts.get(name, 0) - 1
            if left > 0:
                counts[name] = left
            else:
                counts.pop(name, None)
