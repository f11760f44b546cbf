"""How fast the engine has lately been, from its own steps."""

from __future__ import annotations

from collections.abc import Sequence

NEWEST_WEIGHS = 0.1


class Rates:
    """Exponentially weighted means; 0 until measured."""

    def __init__(self) -> None:
        self.prefill_tokens_per_second = 0.0
        self.seconds_per_output_token = 0.0

    def learn(self, counts: Sequence[int], seconds: float) -> None:
        """A step computed `counts` tokens of its sequences. One with prompts also cost its single tokens' time."""
        prompts = sum(count for count in counts if count > 1)
        if prompts:
            singles = self.seconds_per_output_token if 1 in counts else 0.0
            alone = max(seconds - singles, seconds / 2)
            self.prefill_tokens_per_second = _blended(self.prefill_tokens_per_second, prompts / alone)
        elif counts:
            self.seconds_per_output_token = _blended(self.seconds_per_output_token, seconds)


def _blended(mean: float, newest: float) -> float:
    return newest if mean == 0.0 else mean + NEWEST_WEIGHS * (newest - mean)
