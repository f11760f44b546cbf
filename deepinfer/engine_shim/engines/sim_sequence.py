"""A simulated engine's requests on their way, and what it computes at a time."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from deepinfer.engine_shim.token_engine import TokenDelta, TokenRequest


@dataclass(eq=False)
class Sequence:
    """One request on its way. The last token's KV is not there yet: it is computed by the next step."""

    request: TokenRequest
    answer: tuple[int, ...]
    lends: bool = False  # its prompt's blocks are kept for another engine
    deltas: asyncio.Queue[TokenDelta] = field(default_factory=asyncio.Queue)
    made: int = 0
    uncomputed: int = 0  # prompt tokens still to prefill
    cached: int = 0
    blocks: list[int] = field(default_factory=list)  # names of those held
    reserved: int = 0
    over: bool = False
    since: float = 0.0  # its admission, then its latest token

    def computed(self) -> int:
        return len(self.request.token_ids) - self.uncomputed + max(0, self.made - 1)

    def all_tokens(self) -> tuple[int, ...]:
        return self.request.token_ids + self.answer[: self.made]


@dataclass(frozen=True)
class Step:
    """What is being computed now."""

    started: float
    decoding: tuple[Sequence, ...]
    prefill: tuple[tuple[Sequence, int], ...]  # and how many of its tokens

    def prefill_tokens(self) -> int:
        return sum(tokens for _, tokens in self.prefill)
