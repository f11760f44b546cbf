"""What one request was expected to be at the replica it went to; what it turned out to be is compared with it."""

from __future__ import annotations

from collections.abc import Sequence


class Forecast:
    """Made when the replica is chosen. `first_seconds`: until its first token, by rates alone; `foreseen_seconds`: by
    all that is known."""

    __slots__ = (
        "cached_tokens",
        "first_seconds",
        "foreseen_seconds",
        "from_index",
        "is_exact",
        "is_over",
        "names",
        "prompt_tokens",
        "sent_at",
        "streams",
        "uncached_tokens",
    )

    def __init__(self, prompt_tokens: int, cached_tokens: float, sent_at: float, *, streams: bool) -> None:
        self.prompt_tokens = prompt_tokens
        self.cached_tokens = cached_tokens
        self.uncached_tokens = max(1.0, prompt_tokens - cached_tokens)
        self.sent_at = sent_at
        self.streams = streams
        self.first_seconds = 0.0
        self.foreseen_seconds = 0.0
        self.from_index = False  # `cached_tokens` is what the engine was known to hold, and can be held against it
        self.is_exact = False  # `prompt_tokens` is of the very tokens that the engine should make of the prompt
        self.names: Sequence[int] = ()  # of the blocks it will fill
        self.is_over = False  # its prefill
