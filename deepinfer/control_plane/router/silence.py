"""Whether an engine that should say something does not. Pure: told what was heard, and when.

A process that stands still looks like one that computes: its connections are open, and nothing tells when the prefill
of a whole answer is over. But one that computes goes on telling: that a request has begun, each block that it fills,
and how fast it is.
"""

from __future__ import annotations

from typing import Final

from deepinfer.engine_shim.stall import STEP_TOKENS
from deepinfer.engine_shim.state_wire import DRIFT_SECONDS
from deepinfer.engine_shim.token_engine import EngineLoad

_PATIENCE_SECONDS: Final = 1.0
"""Twice as long as an engine keeps its load to itself."""


class Silence:
    """Of one engine."""

    __slots__ = ("_asked", "_heard_at", "_prefill_tokens", "_tells", "_told_at", "_works")

    def __init__(self) -> None:
        self._told_at = 0.0
        self._heard_at = 0.0  # its word, or an answer's begin
        self._asked = 0  # requests since its last word that have no answer yet
        self._prefill_tokens = 0
        self._works = False
        self._tells = False

    def asked(self, now: float, *, busy: bool) -> None:
        """A request went there. Who was not busy had nothing to say until now."""
        self._asked += 1
        if not busy:
            self._heard_at = now

    def answered(self, sent_at: float, now: float) -> None:
        """A request that went there at `sent_at` gets its answer."""
        self._heard_at = now
        self.cancelled(sent_at)

    def cancelled(self, sent_at: float) -> None:
        """Such a request will get none."""
        if sent_at >= self._told_at and self._asked:
            self._asked -= 1

    def told(self, load: EngineLoad, now: float, *, tells: bool) -> None:
        """The engine's newest word. One that never tells what it does is not waited for."""
        self._told_at = self._heard_at = now
        self._asked = 0
        self._works = load.running + load.waiting > 0
        self._prefill_tokens = min(load.waiting_prefill_tokens, STEP_TOKENS)
        self._tells = self._tells or self._works or tells

    def is_brief(self, now: float) -> bool:
        """Whether nothing can be late yet."""
        return now - self._heard_at <= _PATIENCE_SECONDS

    def seconds(self, block_seconds: float, rate: float, now: float) -> float:
        """That its next word is late, if it takes so long to fill a block with one answer, and computes prompts at
        `rate` tokens a second. What it has answered may be on its way to clients, and is no work."""
        if not self._tells or not (self._works or self._asked):
            return 0.0
        usual = min(block_seconds, DRIFT_SECONDS) + self._prefill_tokens / rate
        return max(0.0, now - self._heard_at - usual - _PATIENCE_SECONDS)
