"""The head's book: which sequences there are, the next batch for the stages, and what came back.

Synchronous and without threads; `engine.py` drives it. Several batches may be under way: a sequence whose token is
under way is in no other one, a long prompt's chunks follow each other without waiting. A step that fails ends the
requests in it and nothing else.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from deepinfer.engine_shim.engines.layer_shard.batch import Batch, Span, StepResult
from deepinfer.engine_shim.engines.layer_shard.rates import Rates
from deepinfer.engine_shim.engines.layer_shard.schedule import BLOCK, Limits, StepPlan, plan_step
from deepinfer.engine_shim.engines.layer_shard.sequence import Sequence
from deepinfer.engine_shim.token_engine import EngineLoad, FinishReason, TokenDelta

Deltas = list[tuple[Sequence, TokenDelta]]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class UnderWay:
    """A batch that has not come back: itself, the tokens of its spans, and who is in it."""

    batch: Batch
    token_ids: list[int]
    sequences: dict[int, Sequence]  # by their stay
    began: float


@dataclass(frozen=True, slots=True)
class Again:
    """What stages need that hold nothing of what they should: `filling` puts it back, `under_way` is sent again."""

    filling: tuple[tuple[Batch, list[int]], ...]
    under_way: tuple[UnderWay, ...]


class Steps:
    """The sequences of one engine and what moves them on."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []  # oldest first
        self._awaited: set[int] = set()  # sequences whose next token is under way
        self._ended: list[int] = []  # stays whose memory the stages still hold
        self._unopened: list[Sequence] = []  # running ones that the last stage does not know
        self._under_way: dict[int, UnderWay] = {}
        self._numbers, self._stays = itertools.count(), itertools.count()
        self._rates = Rates()
        self.work_done = 0

    @property
    def idle(self) -> bool:
        return not (self._waiting or self._running or self._ended)

    @property
    def sequences(self) -> int:
        return len(self._running) + len(self._waiting)

    @property
    def under_way(self) -> int:
        """Batches."""
        return len(self._under_way)

    @property
    def kv_tokens_held(self) -> int:
        return sum(sequence.capacity for sequence in self._running)

    def load(self) -> EngineLoad:
        return EngineLoad(
            running=len(self._running),
            waiting=len(self._waiting),
            waiting_prefill_tokens=sum(
                len(s.tokens) - s.computed for s in (*self._waiting, *self._running) if len(s.tokens) > s.computed + 1
            ),
            kv_blocks_used=self.kv_tokens_held // BLOCK,
            prefill_tokens_per_second=self._rates.prefill_tokens_per_second,
            seconds_per_output_token=self._rates.seconds_per_output_token,
        )

    def limit(self, kv_tokens: int) -> None:
        """So many tokens' keys and values fit from now on. Who holds more gives it up when it would grow."""
        self._limits = dataclasses.replace(self._limits, kv_tokens=kv_tokens)

    def end_all(self, error: str) -> Deltas:
        """Every request ends here, with this error."""
        failed = TokenDelta(finish_reason=FinishReason.ERROR, error=error)
        ended = [*self._running, *self._waiting]
        for sequence in ended:
            self.remove(sequence)
        return [(sequence, failed) for sequence in ended]

    def add(self, sequence: Sequence) -> None:
        self._waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """The sequence ends here; its memory is free with the next batch. It may have ended before."""
        if sequence in self._running:
            self._running.remove(sequence)
            self._ended.append(sequence.stay)
        elif sequence in self._waiting:
            self._waiting.remove(sequence)
        sequence.forget()

    def next_batch(self, groups: int = 1) -> UnderWay | None:
        """What the stages are to do next, or None while there is nothing. It is under way from now on.

        So many `groups` of sequences take turns: each gets its share of those that run.
        """
        most = max(1, -(-min(self.sequences, self._limits.sequences) // groups))
        ready = itertools.takewhile(lambda s: s.number not in self._awaited, self._waiting)
        plan = plan_step([s.state() for s in self._running], [s.state() for s in ready], self._limits, most)
        began = time.perf_counter()
        self._preempt(plan)
        if not plan.work and not self._ended:
            return None
        self._admit(plan)
        by_number = {sequence.number: sequence for sequence in self._running}
        pairs = [(by_number[work.id], work) for work in plan.work]
        spans = sorted(itertools.chain.from_iterable(s.spans(w) for s, w in pairs), key=_rank)
        for sequence, work in pairs:
            sequence.computed += work.count
            sequence.capacity = work.capacity
        sequences = {sequence.stay: sequence for sequence, _ in pairs}
        opened = tuple(sequence.opening() for sequence in self._unopened)
        batch = Batch(next(self._numbers), tuple(spans), opened, tuple(self._ended))
        self._unopened, self._ended = [], []
        return self._launched(UnderWay(batch, _tokens_of(spans, sequences), sequences, began))

    def again(self) -> Again:
        """Stages were replaced: nothing that is under way will come back, and some hold nothing. The rest of what
        `returned` and `next_batch` do goes on as if nothing had happened."""
        alive = {sequence.stay: sequence for sequence in self._running}
        lost, self._under_way, self._awaited = self._under_way, {}, set()
        returned = {stay: sequence.computed for stay, sequence in alive.items()}
        for span in itertools.chain.from_iterable(one.batch.spans for one in lost.values()):
            if span.sequence in alive:
                returned[span.sequence] -= span.count
        spans = itertools.chain.from_iterable(s.spans_again(returned[stay]) for stay, s in alive.items())
        filling = [
            (Batch(next(self._numbers), tuple(part)), _tokens_of(part, alive))
            for part in _parts(spans, self._limits.tokens_in_a_step)
        ]
        self._unopened = list(self._running)
        return Again(tuple(filling), tuple(self._sent_again(one, alive) for one in lost.values()))

    def _sent_again(self, lost: UnderWay, alive: dict[int, Sequence]) -> UnderWay:
        """Without who is not there any more; the first one tells the last stage of all."""
        spans = tuple(span for span in lost.batch.spans if span.sequence in alive)
        opened, self._unopened = tuple(sequence.opening() for sequence in self._unopened), []
        batch = Batch(lost.batch.step, spans, opened, lost.batch.ended)
        return self._launched(UnderWay(batch, _tokens_of(spans, alive), lost.sequences, lost.began))

    def _launched(self, under_way: UnderWay) -> UnderWay:
        batch, sequences = under_way.batch, under_way.sequences
        self._awaited |= {sequences[span.sequence].number for span in batch.spans if span.chooses}
        self._under_way[batch.step] = under_way
        return under_way

    def returned(self, result: StepResult) -> Deltas:
        """What each sequence got from a step. Who ended meanwhile gets nothing."""
        done = self._under_way.pop(result.step)
        self._awaited -= {done.sequences[span.sequence].number for span in done.batch.spans if span.chooses}
        deltas = self._failed(done, result.error) if result.error else self._accepted(done, result)
        for sequence, delta in deltas:
            if delta.finish_reason is not None:
                self.remove(sequence)
        self.work_done += done.batch.tokens
        if done.batch.spans:
            counts = [span.count for span in done.batch.spans]
            self._rates.learn(counts, time.perf_counter() - done.began)
        return deltas

    def _accepted(self, done: UnderWay, result: StepResult) -> Deltas:
        alive = {stay: s for stay, s in done.sequences.items() if s in self._running or s in self._waiting}
        return [(alive[stay], alive[stay].accept(choice)) for stay, choice in result.choices if stay in alive]

    def _failed(self, done: UnderWay, error: str) -> Deltas:
        log.error("a step of %d sequences failed: %s", len(done.sequences), error)
        failed = TokenDelta(finish_reason=FinishReason.ERROR, error=f"The engine failed: {error}")
        return [(s, failed) for s in done.sequences.values() if s in self._running or s in self._waiting]

    def _preempt(self, plan: StepPlan) -> None:
        """Move them back to the head of the queue."""
        by_number = {s.number: s for s in self._running}
        for number in reversed(plan.preempted):
            sequence = by_number[number]
            self._ended.append(sequence.stay)
            sequence.forget()
            self._running.remove(sequence)
            self._waiting.appendleft(sequence)

    def _admit(self, plan: StepPlan) -> None:
        """Move the plan's newcomers out of the queue."""
        chosen = {work.id for work in plan.work}
        while self._waiting and self._waiting[0].number in chosen:
            sequence = self._waiting.popleft()
            sequence.stay = next(self._stays)
            self._running.append(sequence)
            self._unopened.append(sequence)


def _rank(span: Span) -> int:
    """The order that attention wants."""
    return 2 if span.count > 1 else int(span.again)


def _tokens_of(spans: Iterable[Span], sequences: Mapping[int, Sequence]) -> list[int]:
    return [token for span in spans for token in sequences[span.sequence].tokens[span.start : span.start + span.count]]


def _parts(spans: Iterable[Span], tokens: int) -> Iterator[list[Span]]:
    """Batches of at most so many tokens, each in the order that attention wants."""
    part, held = list[Span](), 0
    for span in spans:
        if part and held + span.count > tokens:
            yield sorted(part, key=_rank)
            part, held = [], 0
        part.append(span)
        held += span.count
    if part:
        yield sorted(part, key=_rank)
