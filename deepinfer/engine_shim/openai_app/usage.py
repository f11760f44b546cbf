"""What a request cost, in tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from deepinfer.engine_shim.text_generation import TextDelta


class Usage:
    """Grows with every delta. The choices of one prompt stand side by side, and the prompt counts once."""

    def __init__(self, prompt_tokens: Sequence[int], choices_per_prompt: int) -> None:
        self._prompt_tokens = sum(prompt_tokens)
        self._each = choices_per_prompt
        self._made = [0] * (len(prompt_tokens) * choices_per_prompt)
        self._cached = [0] * len(self._made)

    def add(self, choice: int, delta: TextDelta) -> None:
        self._made[choice] = delta.made
        self._cached[choice] = delta.cached_tokens

    def json(self) -> dict[str, Any]:
        made = sum(self._made)
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": made,
            "total_tokens": self._prompt_tokens + made,
            "prompt_tokens_details": {"cached_tokens": sum(self._cached[:: self._each])},
        }
