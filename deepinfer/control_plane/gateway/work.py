"""How much work a request will be, in tokens, as far as its body and its model's past tell. Pure."""

from __future__ import annotations

from typing import Final

BYTES_A_TOKEN: Final = 4.0
ANSWER_TOKENS: Final = 256.0
_NEW: Final = 0.05  # weight of the latest request in the means
_MOST_CHOICES: Final = 128
_WHOLE_CONTEXT: Final = 1 << 20


class Experience:
    """Of one model: what its requests were, foreseen from what the last ones turned out to be."""

    __slots__ = ("answer_tokens", "bytes_a_token")

    def __init__(self) -> None:
        self.bytes_a_token = BYTES_A_TOKEN
        self.answer_tokens = ANSWER_TOKENS

    def work(self, body_bytes: int, most_tokens: object, choices: object) -> float:
        """Of a request that may get `most_tokens` in each of `choices`: as its body has them, not checked."""
        times = min(choices, _MOST_CHOICES) if isinstance(choices, int) and choices > 1 else 1
        return self.prompt_tokens(body_bytes) + self.answer(most_tokens) * times

    def answer(self, most_tokens: object) -> float:
        """Tokens of one answer that may have `most_tokens`, as the body has that."""
        if isinstance(most_tokens, int) and 0 < most_tokens < self.answer_tokens:
            return float(most_tokens)
        return self.answer_tokens

    def prompt_tokens(self, body_bytes: int) -> float:
        return min(1.0 + body_bytes / self.bytes_a_token, _WHOLE_CONTEXT)

    def learn(self, body_bytes: int, prompt_tokens: int, answer_tokens: int) -> None:
        """What one turned out to be; 0 for what is not known."""
        if prompt_tokens > 0:
            self.bytes_a_token += _NEW * (min(body_bytes / prompt_tokens, 1e4) - self.bytes_a_token)
        if answer_tokens > 0:
            self.answer_tokens += _NEW * (answer_tokens - self.answer_tokens)
