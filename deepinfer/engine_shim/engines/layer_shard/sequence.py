"""One request under way: its tokens so far, and how many of them were given to the stages. The head's alone."""

from __future__ import annotations

from collections.abc import Sequence as Tokens
from dataclasses import dataclass, field

from deepinfer.engine_shim.engines.layer_shard.batch import Opening, Span
from deepinfer.engine_shim.engines.layer_shard.sampling import Choice
from deepinfer.engine_shim.engines.layer_shard.schedule import SequenceState, Work
from deepinfer.engine_shim.token_engine import FinishReason, TokenDelta, TokenRequest


@dataclass(eq=False)
class Sequence:
    """`tokens` is prompt and answer; the first `computed` were given to the stages, whose memory holds `capacity`."""

    number: int
    request: TokenRequest
    end_token_ids: tuple[int, ...]
    longest: int
    seed: int
    tokens: list[int] = field(default_factory=list)
    stay: int = -1  # in the stages' memory: its number there
    computed: int = 0
    capacity: int = 0
    wholes: dict[int, int] = field(
        default_factory=dict
    )  # tokens computed together: the first one's place, and how many

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
        return SequenceState(self.number, len(self.tokens), self.computed, self.capacity, self.longest)

    def opening(self) -> Opening:
        """What the last stage must know of it before its first span."""
        sampling, answer = self.request.sampling, tuple(self.answer)
        prompt = self.request.token_ids if sampling.repetition_penalty != 1.0 else ()
        drawn = self.request.generated + len(answer)
        return Opening(self.stay, sampling, self.end_token_ids, self.seed, drawn, prompt, answer)

    def spans(self, work: Work) -> list[Span]:
        """What was given, in one; then what was generated and is not there any more, token by token, as it was."""
        start, stop = self.computed, self.computed + work.count
        chooses = stop == len(self.tokens)
        if work.count == 1:
            return [Span(self.stay, start, 1, work.capacity, chooses=chooses)]
        split = min(max(start, self.given), stop)
        whole = Span(self.stay, start, split - start, work.capacity, chooses=chooses and split == stop)
        again = [
            Span(self.stay, at, 1, work.capacity, again=True, chooses=chooses and at + 1 == stop)
            for at in range(split, stop)
        ]
        if split == start:
            return again
        self.wholes[start] = whole.count
        return [whole, *again]

    def spans_again(self, stop: int) -> list[Span]:
        """All up to `stop`, cut as they were when they were computed: other cuts may give other bits."""
        spans, at = [], 0
        while at < stop:
            count = min(self.wholes.get(at, 1), stop - at)
            spans.append(Span(self.stay, at, count, self.capacity, again=count == 1))
            at += count
        return spans

    def forget(self) -> None:
        """Give the memory back; the tokens stay, and are computed again if the sequence goes on."""
        self.capacity = 0
        self.computed = 0
        self.wholes.clear()

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
