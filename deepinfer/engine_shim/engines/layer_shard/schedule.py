"""Which sequences compute what in the next step. Pure: values in, one `StepPlan` out.

Rules, in order:
* every running sequence that only awaits its next token goes first, so that streams keep flowing;
* then prompts under way, then waiting ones first come first served, within the step's token budget. A prompt that fits
  a whole budget is never cut in pieces (its answer then has the bits it has alone); a longer one is computed in chunks;
* a sequence that outgrows its memory gets twice as much, or what is left; when nothing is left, the youngest running
  sequences lose theirs, go to the head of the queue, and are computed again later;
* where groups of sequences take turns in a pipeline, a step has at most `most` of them, the oldest first.

A lone sequence always fits, because no request longer than the memory is accepted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

BLOCK = 16  # tokens; memory is counted and given in blocks
CHUNK_MULTIPLE = 32  # a chunk that does not end a prompt is a multiple of this
ROOM_FOR_ANSWER = 64  # tokens of answer a newcomer gets room for at once


@dataclass(frozen=True, slots=True)
class SequenceState:
    """One sequence as the schedule sees it. `known` tokens exist; the keys and values of `computed` are held."""

    id: int
    known: int
    computed: int
    capacity: int  # tokens its memory can hold; 0 while it waits
    longest: int  # tokens it can have at most, prompt and answer

    @property
    def missing(self) -> int:
        return self.known - self.computed


@dataclass(frozen=True, slots=True)
class Limits:
    """What a step and the memory can take."""

    sequences: int
    tokens_in_a_step: int
    kv_tokens: int


@dataclass(frozen=True, slots=True)
class Work:
    """`count` tokens of a sequence to compute; its memory must hold `capacity` tokens first."""

    id: int
    count: int
    capacity: int


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What the step computes, single tokens first, and who loses its memory before that, oldest first."""

    work: tuple[Work, ...]
    preempted: tuple[int, ...] = ()


@dataclass
class _Draft:
    """The plan in the making."""

    limits: Limits
    free: int
    budget: int  # tokens
    most: int  # sequences
    work: list[Work] = field(default_factory=list)

    @property
    def full(self) -> bool:
        return len(self.work) >= self.most

    def take(self, sequence: SequenceState, count: int, capacity: int) -> None:
        self.work.append(Work(sequence.id, count, capacity))
        self.free -= capacity - sequence.capacity
        self.budget -= count


def plan_step(
    running: Sequence[SequenceState], waiting: Sequence[SequenceState], limits: Limits, most: int | None = None
) -> StepPlan:
    """`running` from the oldest to the youngest, `waiting` from the first to the last."""
    most = limits.sequences if most is None else most
    kept, preempted = list(running), list[SequenceState]()
    while True:
        draft = _Draft(limits, limits.kv_tokens - sum(s.capacity for s in kept), limits.tokens_in_a_step, most)
        if _continue_all(kept, draft):
            break
        preempted.insert(0, kept.pop())
    if not preempted:  # whoever made room by leaving must not be pushed aside by a newcomer
        _admit(waiting, len(kept), draft)
    work = sorted(draft.work, key=lambda w: w.count > 1)
    return StepPlan(tuple(work), tuple(s.id for s in preempted))


def _continue_all(running: Sequence[SequenceState], draft: _Draft) -> bool:
    """Give every running sequence its work; False when the memory does not suffice."""
    for sequence in sorted(running, key=lambda s: s.missing > 1):
        count = _chunk(sequence, draft)
        if count == 0 or draft.full:
            continue
        capacity = _grown(sequence, sequence.computed + count, draft.free)
        if capacity is None:
            return False
        draft.take(sequence, count, capacity)
    return True


def _admit(waiting: Sequence[SequenceState], running: int, draft: _Draft) -> None:
    for sequence in waiting:
        count = _chunk(sequence, draft)
        capacity = in_blocks(min(sequence.longest, sequence.known + ROOM_FOR_ANSWER))
        if draft.full or running >= draft.limits.sequences or count == 0 or capacity > draft.free:
            return  # in order: nobody overtakes
        draft.take(sequence, count, capacity)
        running += 1


def _chunk(sequence: SequenceState, draft: _Draft) -> int:
    """How many tokens of the sequence to compute now."""
    if sequence.missing <= draft.budget:
        return sequence.missing
    if sequence.known <= draft.limits.tokens_in_a_step:
        return 0  # next step it goes in one piece
    return draft.budget // CHUNK_MULTIPLE * CHUNK_MULTIPLE


def _grown(sequence: SequenceState, needed: int, free: int) -> int | None:
    """The capacity to hold `needed` tokens: what it has, twice that, or just enough; None when that is not free."""
    if needed <= sequence.capacity:
        return sequence.capacity
    enough = in_blocks(needed)
    doubled = min(in_blocks(sequence.longest), max(enough, 2 * sequence.capacity))
    for capacity in (doubled, enough):
        if capacity - sequence.capacity <= free:
            return capacity
    return None


def in_blocks(tokens: int) -> int:
    """Rounded up to whole blocks."""
    return -(-tokens // BLOCK) * BLOCK
