"""Runs step after step: plans, makes room, computes all sequences' tokens in one pass, chooses the next ones.

Synchronous and without threads; `engine.py` drives it. A step that fails ends the requests in it and nothing else.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections import deque
from dataclasses import dataclass

import torch

from deepinfer.engine_shim.engines.layer_shard.attention import Segment
from deepinfer.engine_shim.engines.layer_shard.kv import KvSlab
from deepinfer.engine_shim.engines.layer_shard.rates import Rates
from deepinfer.engine_shim.engines.layer_shard.sampling import choose
from deepinfer.engine_shim.engines.layer_shard.schedule import BLOCK, Limits, StepPlan, plan_step
from deepinfer.engine_shim.engines.layer_shard.sequence import Sequence
from deepinfer.engine_shim.engines.layer_shard.stage import Stage
from deepinfer.engine_shim.token_engine import EngineLoad, FinishReason, TokenDelta

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Part:
    """A sequence's share of a step."""

    sequence: Sequence
    count: int
    capacity: int  # that its memory must have


@dataclass(frozen=True, slots=True)
class _Span:
    """Tokens `start:stop` of a sequence, that get one attention call."""

    sequence: Sequence
    start: int
    stop: int
    again: bool = False

    @property
    def completes(self) -> bool:
        """All tokens are computed then, and the next can be chosen."""
        return self.stop == len(self.sequence.tokens)

    @property
    def rank(self) -> int:
        """The order that attention wants."""
        return 2 if self.stop - self.start > 1 else int(self.again)


class Steps:
    """The sequences of one engine and what it takes to move them on."""

    def __init__(self, stage: Stage, limits: Limits) -> None:
        self._stage = stage
        self._limits = limits
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []  # oldest first
        self._rates = Rates()
        self.work_done = 0

    @property
    def idle(self) -> bool:
        return not self._waiting and not self._running

    @property
    def kv_tokens_held(self) -> int:
        return sum(sequence.slab.capacity for sequence in self._running if sequence.slab)

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
        """The sequence ends here; its memory is free at once. It may have ended before."""
        sequence.forget()
        if sequence in self._running:
            self._running.remove(sequence)
        elif sequence in self._waiting:
            self._waiting.remove(sequence)

    def release(self) -> None:
        """Free weights and memory; nothing can be computed afterwards."""
        for sequence in (*self._running, *self._waiting):
            sequence.forget()
        self._running.clear()
        self._waiting.clear()
        self._stage.release()

    def step(self) -> list[tuple[Sequence, TokenDelta]]:
        """Compute once; what each sequence got from it."""
        began = time.perf_counter()
        plan = plan_step([s.state() for s in self._running], [s.state() for s in self._waiting], self._limits)
        parts = self._scheduled(plan)
        try:
            deltas = self._computed(parts)
        except Exception as error:
            log.exception("a step of %d sequences failed", len(parts))
            failed = TokenDelta(finish_reason=FinishReason.ERROR, error=f"The engine failed: {error}")
            deltas = [(part.sequence, failed) for part in parts]
        for sequence, delta in deltas:
            if delta.finish_reason is not None:
                self.remove(sequence)
        self.work_done += sum(part.count for part in parts)
        self._rates.learn([part.count for part in parts], time.perf_counter() - began)
        return deltas

    def _scheduled(self, plan: StepPlan) -> list[_Part]:
        """Move the plan's sequences between the queues."""
        by_number = {s.number: s for s in (*self._running, *self._waiting)}
        for number in reversed(plan.preempted):
            sequence = by_number[number]
            sequence.forget()
            self._running.remove(sequence)
            self._waiting.appendleft(sequence)
        parts = [_Part(by_number[work.id], work.count, work.capacity) for work in plan.work]
        admitted = {id(part.sequence) for part in parts}
        while self._waiting and id(self._waiting[0]) in admitted:
            self._running.append(self._waiting.popleft())
        return parts

    def _computed(self, parts: list[_Part]) -> list[tuple[Sequence, TokenDelta]]:
        slabs = {part.sequence.number: self._slab(part.sequence, part.capacity) for part in parts}
        spans = sorted(itertools.chain.from_iterable(map(_spans, parts)), key=lambda span: span.rank)
        segments = [Segment(slabs[s.sequence.number], s.start, s.stop - s.start, s.again) for s in spans]
        hidden = self._forward(spans, segments)
        for part in parts:
            part.sequence.computed += part.count
        ends = itertools.accumulate(span.stop - span.start for span in spans)
        last = [(span.sequence, end - 1) for span, end in zip(spans, ends, strict=True) if span.completes]
        if not last:
            return []
        sequences, last_rows = [sequence for sequence, _ in last], [row for _, row in last]
        choices = choose(self._stage.logits(hidden[last_rows]), [sequence.row() for sequence in sequences])
        return [(sequence, sequence.accept(choice)) for sequence, choice in zip(sequences, choices, strict=True)]

    def _slab(self, sequence: Sequence, capacity: int) -> KvSlab:
        if sequence.slab is None:
            sequence.slab = KvSlab(self._stage.kv_shape, capacity)
        elif sequence.slab.capacity < capacity:
            sequence.slab.grow(capacity, sequence.computed)
        return sequence.slab

    def _forward(self, spans: list[_Span], segments: list[Segment]) -> torch.Tensor:
        tokens = itertools.chain.from_iterable(span.sequence.tokens[span.start : span.stop] for span in spans)
        ids = torch.tensor(list(tokens), device=self._stage.device)
        places = itertools.chain.from_iterable(range(span.start, span.stop) for span in spans)
        positions = torch.tensor(list(places), device=self._stage.device)
        return self._stage.forward(ids, positions, segments)


def _spans(part: _Part) -> list[_Span]:
    """What was given, in one; then what was generated and is not there any more, token by token, as it was made."""
    sequence, start = part.sequence, part.sequence.computed
    stop = start + part.count
    if part.count == 1:
        return [_Span(sequence, start, stop)]
    split = min(max(start, sequence.given), stop)
    given = [_Span(sequence, start, split)] if split > start else []
    return given + [_Span(sequence, at, at + 1, again=True) for at in range(split, stop)]
