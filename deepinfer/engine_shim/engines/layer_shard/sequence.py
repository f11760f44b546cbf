"""One request under way: its tokens so far, and its memory. Only the engine's thread touches it."""

from __future__ import annotations

from collections.abc import Sequence as Tokens
from dataclasses import dataclass, field

import torch

from deepinfer.engine_shim.engines.layer_shard.kv import KvSlab
from deepinfer.engine_shim.engines.layer_shard.sampling import Choice, Row
from deepinfer.engine_shim.engines.layer_shard.schedule import SequenceState
from deepinfer.engine_shim.token_engine import FinishReason, TokenDelta, TokenRequest


@dataclass(eq=False)
class Sequence:
    """`tokens` is prompt and answer; the keys and values of the first `computed` are in `slab`."""

    number: int
    request: TokenRequest
    end_token_ids: tuple[int, ...]
    longest: int
    generator: torch.Generator
    tokens: list[int] = field(default_factory=list)
    computed: int = 0
    slab: KvSlab | None = None

    def __post_init__(self) -> None:
        self.tokens = list(self.request.token_ids)

    @property
    def given(self) -> int:
        """So many tokens were never generated: they are computed together, and all others as they were, one by one."""
        return len(self.request.token_ids) - self.request.generated

    @property
    def answer(self) -> Tokens[int]:
        return self.tokens[len(self.request.token_ids) :]

    def state(self) -> SequenceState:
        capacity = self.slab.capacity if self.slab else 0
        return SequenceState(self.number, len(self.tokens), self.computed, capacity, self.longest)

    def row(self) -> Row:
        request = self.request
        return Row(request.sampling, request.token_ids, self.answer, self.end_token_ids, self.generator)

    def forget(self) -> None:
        """Give the memory back; the tokens stay, and are computed again if the sequence goes on."""
        self.slab = None
        self.computed = 0

    def accept(self, choice: Choice) -> TokenDelta:
        """Append the chosen token; the delta says whether it was the last."""
        self.tokens.append(choice.token_id)
        logprobs = (choice.logprob,) if choice.logprob else ()
        return TokenDelta((choice.token_id,), logprobs, self._finish(choice.token_id))

    def _finish(self, token: int) -> FinishReason | None:
        enough = len(self.tokens) - len(self.request.token_ids) >= self.request.sampling.min_tokens
        if enough and (token in self.end_token_ids or token in self.request.sampling.stop_token_ids):
            return FinishReason.STOP
        return FinishReason.LENGTH if len(self.tokens) >= self.longest else None
