"""The schedule as tables and properties."""

from __future__ import annotations

import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from deepinfer.engine_shim.engines.layer_shard.schedule import Limits, SequenceState, StepPlan, Work, plan_step

LIMITS = Limits(sequences=4, tokens_in_a_step=64, kv_tokens=512)


def decoding(number: int, known: int, capacity: int, longest: int = 400) -> SequenceState:
    return SequenceState(number, known, known - 1, capacity, longest)


def waiting(number: int, known: int, longest: int = 400) -> SequenceState:
    return SequenceState(number, known, 0, 0, longest)


def test_an_idle_engine_does_nothing() -> None:
    assert plan_step([], [], LIMITS) == StepPlan(())


def test_single_tokens_come_before_prompts_and_newcomers_in_order() -> None:
    plan = plan_step([decoding(1, 20, 64)], [waiting(2, 30), waiting(3, 40)], LIMITS)
    assert [(w.id, w.count) for w in plan.work] == [(1, 1), (2, 30)]  # 40 more do not fit the budget: next step


def test_nobody_overtakes_a_newcomer_that_does_not_fit() -> None:
    plan = plan_step([decoding(1, 20, 448)], [waiting(2, 60), waiting(3, 1, longest=16)], LIMITS)
    assert [w.id for w in plan.work] == [1]


def test_a_prompt_longer_than_the_budget_goes_in_chunks() -> None:
    assert plan_step([], [waiting(1, 150)], LIMITS).work == (Work(1, 64, 224),)
    under_way = SequenceState(1, 150, 128, 224, 400)
    assert plan_step([under_way], [], LIMITS).work == (Work(1, 22, 224),)


def test_a_full_slab_is_doubled_and_else_gets_what_is_left() -> None:
    assert plan_step([decoding(1, 65, 64)], [], LIMITS).work == (Work(1, 1, 128),)
    assert plan_step([decoding(1, 65, 64), decoding(2, 20, 416)], [], LIMITS).work[0] == Work(1, 1, 80)


def test_the_youngest_makes_room() -> None:
    plan = plan_step([decoding(1, 257, 256), decoding(2, 20, 256)], [waiting(3, 5)], LIMITS)
    assert plan == StepPlan((Work(1, 1, 400),), (2,))


def test_the_youngest_may_have_to_leave_for_itself() -> None:
    plan = plan_step([decoding(1, 20, 256), decoding(2, 257, 256)], [], LIMITS)
    assert plan == StepPlan((Work(1, 1, 256),), (2,))


states = st.builds(
    lambda known, answer, held: SequenceState(0, known, 0, held, known + answer),
    known=st.integers(1, 200),
    answer=st.integers(1, 200),
    held=st.integers(0, 3),
)


@given(st.lists(states, max_size=8))
def test_everybody_is_finished_within_the_limits(newcomers: list[SequenceState]) -> None:
    """Run the schedule to the end: it never exceeds a limit, never stands still, and starves nobody."""
    queue = [dataclasses.replace(s, id=i, capacity=0) for i, s in enumerate(newcomers)]
    running: list[SequenceState] = []
    finished = set[int]()
    for _ in range(20_000):
        if not queue and not running:
            break
        plan = plan_step(running, queue, LIMITS)
        everyone = {s.id: s for s in (*running, *queue)}
        back = [dataclasses.replace(everyone[i], computed=0, capacity=0) for i in plan.preempted]
        running = [s for s in running if s.id not in plan.preempted]
        queue = back + queue
        known = {s.id for s in running}
        running += [
            everyone[w.id]
            for w in sorted(plan.work, key=lambda w: [s.id for s in queue].index(w.id) if w.id not in known else -1)
            if w.id not in known
        ]
        queue = [s for s in queue if s.id not in {r.id for r in running}]
        assert plan.work, "a step that does nothing would be repeated for ever"
        assert sum(w.count for w in plan.work) <= LIMITS.tokens_in_a_step
        work = {w.id: w for w in plan.work}
        running = [_after(s, work.get(s.id)) for s in running]
        assert sum(s.capacity for s in running) <= LIMITS.kv_tokens
        assert len(running) <= LIMITS.sequences
        assert all(s.computed <= s.capacity for s in running)
        finished |= {s.id for s in running if s.known >= s.longest}
        running = [s for s in running if s.known < s.longest]
    assert finished == {s.id for s in [dataclasses.replace(s, id=i) for i, s in enumerate(newcomers)]}


def _after(sequence: SequenceState, work: Work | None) -> SequenceState:
    if work is None:
        return sequence
    computed = sequence.computed + work.count
    grown = 1 if computed == sequence.known else 0
    return dataclasses.replace(
        sequence, computed=computed, capacity=max(work.capacity, sequence.capacity), known=sequence.known + grown
    )
