"""Which share of its time an engine computes prompts, of late: so long its streams stand still. Pure."""

from __future__ import annotations

from math import exp
from typing import Final

_SECONDS: Final = 6.0
"""Of memory: prompts sent so long ago count a third of those sent now."""
_MOST: Final = 0.95


class PrefillShare:
    """Of one engine, by what one gateway sent there."""

    __slots__ = ("_at", "_work")

    def __init__(self) -> None:
        self._work = 0.0  # seconds of prefill, the older the less
        self._at = 0.0

    def sent(self, seconds: float, now: float) -> None:
        """A request that takes so long to prefill."""
        self._work = self._left(now) + seconds
        self._at = now

    def at(self, now: float) -> float:
        """Below 1."""
        return min(_MOST, self._left(now) / _SECONDS)

    def _left(self, now: float) -> float:
        return self._work * exp((self._at - now) / _SECONDS)
