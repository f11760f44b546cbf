"""The head's book: which sequences there are, the next batch for the stages, and what came back.

Synchronous and without threads; `engine.py` drives it. Several batches may be under way: a sequence whose token is
under way is in no other one, a long prompt's chunks follow each other without waiting. A step that fails ends the
requests in it and nothing else.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections import deque
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
    sequences: tuple[Sequence, ...]
    began: float


class Steps:
    """The sequences of one engine and what moves them on."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []  # oldest first
        self._awaited: set[int] = set()  # sequences whose next token is under way
        self._ended: list[int] = []  # sequences whose memory the stages still hold
        self._under_way: dict[int, UnderWay] = {}
        self._numbers = itertools.count()
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

    def add(self, sequence: Sequence) -> None:
        self._waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """The sequence ends here; its memory is free with the next batch. It may have ended before."""
        if sequence in self._running:
            self._running.remove(sequence)
            self._ended.append(sequence.number)
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
        began, ended = time.perf_counter(), self._ended
        for sequence in self._preempted(plan):
            ended.append(sequence.number)
        if not plan.work and not ended:
            return None
        self._ended = []
        opened = self._admitted(plan)
        by_number = {sequence.number: sequence for sequence in self._running}
        sequences = tuple(by_number[work.id] for work in plan.work)
        spans = itertools.chain.from_iterable(s.spans(w) for s, w in zip(sequences, plan.work, strict=True))
        in_order = sorted(spans, key=_rank)
        for sequence, work in zip(sequences, plan.work, strict=True):
            sequence.computed += work.count
            sequence.capacity = work.capacity
        self._awaited |= {span.sequence for span in in_order if span.chooses}
        tokens = [t for span in in_order for t in _tokens_of(by_number[span.sequence], span)]
        batch = Batch(next(self._numbers), tuple(in_order), tuple(s.opening() for s in opened), tuple(ended))
        under_way = self._under_way[batch.step] = UnderWay(batch, tokens, sequences, began)
        return under_way

    def returned(self, result: StepResult) -> Deltas:
        """What each sequence got from a step. Who ended meanwhile gets nothing."""
        done = self._under_way.pop(result.step)
        self._awaited -= {span.sequence for span in done.batch.spans if span.chooses}
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
        alive = {s.number: s for s in done.sequences if s in self._running or s in self._waiting}
        return [(alive[number], alive[number].accept(choice)) for number, choice in result.choices if number in alive]

    def _failed(self, done: UnderWay, error: str) -> Deltas:
        log.error("a step of %d sequences failed: %s", len(done.sequences), error)
        failed = TokenDelta(finish_reason=FinishReason.ERROR, error=f"The engine failed: {error}")
        return [(s, failed) for s in done.sequences if s in self._running or s in self._waiting]

    def _preempted(self, plan: StepPlan) -> list[Sequence]:
        """Move them back to the head of the queue."""
        by_number = {s.number: s for s in self._running}
        preempted = [by_number[number] for number in plan.preempted]
        for sequence in reversed(preempted):
            sequence.forget()
            self._running.remove(sequence)
            self._waiting.appendleft(sequence)
        return preempted

    def _admitted(self, plan: StepPlan) -> list[Sequence]:
        """Move the plan's newcomers out of the queue."""
        chosen = {work.id for work in plan.work}
        admitted = []
        while self._waiting and self._waiting[0].number in chosen:
            admitted.append(self._waiting.popleft())
        self._running += admitted
        return admitted


def _rank(span: Span) -> int:
    """The order that attention wants."""
    return 2 if span.count > 1 else int(span.again)


def _tokens_of(sequence: Sequence, span: Span) -> list[int]:
    return sequence.tokens[span.start : span.start + span.count]
