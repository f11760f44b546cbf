"""The server's load and progress, from one look at its figures after the other. Pure: it is told when it looks."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from deepinfer.engine_shim.engines.container.figures import Figures
from deepinfer.engine_shim.token_engine import EngineLoad

_NEWEST_WEIGHS: Final = 0.5
"""A look is the mean of half a second, some ten steps; a step of an engine in this process weighs 0.1."""


class LoadMeter:
    """What `load` and `work_done` say between two looks."""

    def __init__(self, kv_blocks: int) -> None:
        self.load = EngineLoad()
        self.work_done = 0  # grows with every look that saw work, and with every one that saw nothing at all
        self.moved = False  # whether the newest look saw work
        self._kv_blocks = kv_blocks
        self._last: Figures | None = None

    @property
    def in_hand(self) -> int:
        return self.load.running + self.load.waiting

    def saw(self, figures: Figures) -> bool:
        """Whether requests have ended since the look before."""
        last = figures if self._last is None else self._last
        self._last = figures
        self.moved = figures.work != last.work
        self.work_done += self.moved
        token_seconds = _ratio(figures.token_seconds - last.token_seconds, figures.token_gaps - last.token_gaps)
        seconds = figures.prefill_seconds - last.prefill_seconds
        prefill_rate = _ratio(figures.prefill_tokens - last.prefill_tokens, seconds)
        busy = figures.running + figures.waiting
        self.load = replace(
            self.load,
            running=figures.running,
            waiting=figures.waiting,
            kv_blocks_used=round(figures.kv_usage * self._kv_blocks) if busy else 0,
            prefill_tokens_per_second=_blended(self.load.prefill_tokens_per_second, prefill_rate),
            seconds_per_output_token=_blended(self.load.seconds_per_output_token, token_seconds),
        )
        return figures.requests_ended != last.requests_ended

    def worked(self) -> None:
        """It answered with a token, or could not be seen: what cannot be seen is not judged."""
        self.work_done += 1


def _ratio(amount: float, of: float) -> float:
    """0 where nothing new was measured, also after the counters began anew."""
    return amount / of if amount > 0 and of > 0 else 0.0


def _blended(mean: float, newest: float) -> float:
    if not newest:
        return mean
    return newest if not mean else mean + _NEWEST_WEIGHS * (newest - mean)
