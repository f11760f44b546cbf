"""What a simulated engine has done since it began. Counts only; whoever shows them knows what they are called."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class SimTotals:
    prompts: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0  # of those
    prefill_seconds: float = 0.0  # from a request's admission to its first token
    tokens: int = 0
    gaps: int = 0  # between two tokens of one answer
    gap_seconds: float = 0.0

    def prompt(self, tokens: int, cached: int, seconds: float) -> None:
        self.prompts += 1
        self.prompt_tokens += tokens
        self.cached_tokens += cached
        self.prefill_seconds += seconds

    def token(self, gap_seconds: float | None) -> None:
        """None: an answer's first."""
        self.tokens += 1
        if gap_seconds is not None:
            self.gaps += 1
            self.gap_seconds += gap_seconds
