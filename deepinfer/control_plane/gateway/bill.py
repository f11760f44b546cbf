"""What a request was foreseen to need, and how it is settled when it has ended: with its key, and with what its model's
next requests are foreseen to be."""

from __future__ import annotations

from deepinfer.control_plane.gateway.asgi import Headers
from deepinfer.control_plane.gateway.usage import Tokens
from deepinfer.control_plane.gateway.work import Experience
from deepinfer.control_plane.limits.key_usage import KeyUsage


class Bill:
    """Of one request; empty until it is opened."""

    __slots__ = ("_experience", "_size", "_tokens", "_usage")

    def __init__(self) -> None:
        self._experience: Experience | None = None
        self._usage: KeyUsage | None = None
        self._size = self._tokens = 0

    def foreseen(self, experience: Experience, size: int) -> None:
        """`size`: bytes of its body."""
        self._experience, self._size = experience, size

    def charge(self, usage: KeyUsage, tokens: int, now: float) -> None:
        """Raises `RateLimited`."""
        usage.begin(tokens, now)
        self._usage, self._tokens = usage, tokens

    def headers(self, now: float) -> Headers:
        """What is left to its key, as OpenAI tells it; nothing for one without limits."""
        return () if self._usage is None else self._usage.headers(now)

    def settle(self, told: Tokens, now: float) -> bool:
        """By what its answer told of itself. Whether a key was charged."""
        experience, usage = self._experience, self._usage
        if experience is None:
            return False
        if told.prompt or told.completion:
            experience.learn(self._size, told.prompt, told.completion)
        if usage is not None:
            prompt = told.prompt or (experience.prompt_tokens(self._size) if told.completion else 0)
            usage.end(int(prompt) + told.completion - self._tokens, now)
        return usage is not None
