"""How many batches to have under way, from what the stages take. Pure but for what it has learned.

Of S stages with times t and links with times c, the slowest works without a pause once m >= (sum t + sum c) / max t
batches are under way. More than that only makes them smaller, and every batch reads all weights: so a stage's time is
taken for a line through its batch's sequences, and m is the one that foretells most tokens a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from deepinfer.engine_shim.engines.layer_shard.batch import StageTime

MOST: Final = 64
_NEWEST_WEIGHS: Final = 0.05
_GAIN: Final = 1.02  # one group more must be worth this much


class Line:
    """seconds = fixed + each * sequences, by exponentially weighted least squares."""

    def __init__(self) -> None:
        self._weight = self._x = self._y = self._xx = self._xy = 0.0

    def learn(self, x: float, y: float) -> None:
        keep = 1.0 - _NEWEST_WEIGHS if self._weight else 0.0
        self._weight = keep * self._weight + 1.0
        self._x = keep * self._x + x
        self._y = keep * self._y + y
        self._xx = keep * self._xx + x * x
        self._xy = keep * self._xy + x * y

    def at(self, x: float) -> float:
        """Where only one x was seen, a quarter of the time is taken for fixed. No line falls, or begins below 0."""
        if not self._weight:
            return 0.0
        mean_x, mean_y = self._x / self._weight, self._y / self._weight
        spread = self._xx / self._weight - mean_x**2
        if spread > 0.01 * mean_x**2 + 1e-9:
            each = max(0.0, min((self._xy / self._weight - mean_x * mean_y) / spread, mean_y / mean_x))
        else:
            each = 0.75 * mean_y / mean_x
        return mean_y + each * (x - mean_x)


class Depth:
    """Learns from every step that decodes."""

    def __init__(self) -> None:
        self._stages: list[Line] = []
        self._hops = 0.0

    def learn(self, sequences: int, seconds: float, times: Sequence[StageTime]) -> None:
        """A step of so many sequences took `seconds` in all, of which the stages' `times` are known."""
        if len(self._stages) != len(times):
            self._stages, self._hops = [Line() for _ in times], 0.0
        for line, time in zip(self._stages, times, strict=True):
            line.learn(sequences, time.computing)
        hops = max(0.0, seconds - sum(time.computing + time.queued for time in times))
        self._hops = hops if not self._hops else self._hops + _NEWEST_WEIGHS * (hops - self._hops)

    def groups(self, sequences: int) -> int:
        """For so many sequences; two until something was learned."""
        if not self._stages:
            return max(1, min(sequences, 2))
        best, rate = 1, 0.0
        for groups in range(1, min(sequences, MOST) + 1):
            size = -(-sequences // groups)
            times = [line.at(size) for line in self._stages]
            lap = max(sum(times) + self._hops, groups * max(times), 1e-9)
            if sequences / lap > rate * _GAIN:
                best, rate = groups, sequences / lap
        return best
