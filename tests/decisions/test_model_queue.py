"""The order of those who wait, and what is foreseen of them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepinfer.control_plane.gateway.drain_rate import DrainRate
from deepinfer.control_plane.gateway.model_queue import ModelQueue, Waiting, urgency
from deepinfer.control_plane.gateway.work import ANSWER_TOKENS, Experience

Asks = st.lists(st.tuples(st.integers(-2, 2), st.integers(-2, 2), st.integers(1, 50)), max_size=30)


@given(Asks, st.data())
def test_lower_numbers_first_then_as_they_came_and_the_sums_agree(
    asks: Sequence[tuple[int, int, int]], data: st.DataObject
) -> None:
    queue: ModelQueue[Waiting] = ModelQueue()
    there = [Waiting((of_key, own), float(work), work) for of_key, own, work in asks]
    for waiting in there:
        queue.add(waiting)
    for gone in data.draw(st.lists(st.sampled_from(there), unique=True) if there else st.just([])):
        queue.leave(gone)
        queue.leave(gone)  # a second time changes nothing
        there.remove(gone)
    there.sort(key=lambda waiting: waiting.priority)  # stable
    assert list(queue) == there and len(queue) == len(there)
    assert queue.first is (there[0] if there else None)
    assert queue.last is (there[-1] if there else None)
    assert queue.size == sum(w.size for w in there) and queue.work == sum(w.work for w in there)
    before = [w for w in there if w.priority <= (0, 0)]
    assert queue.ahead_of((0, 0)) == (len(before), sum(w.work for w in before))


@pytest.mark.parametrize(("said", "means"), [(3, 3), (-1, -1), (None, 0), ("high", 0), (10**30, 0), (1.5, 0), ([], 0)])
def test_only_a_whole_number_is_a_priority(said: object, means: int) -> None:
    assert urgency(said) == means


def test_the_drain_rate_is_what_ended_while_requests_waited() -> None:
    drain = DrainRate()
    assert drain.rate(0.0) is None
    for _ in range(10):
        drain.began(100.0)
    drain.ended(100.0, 1.0, 2.0)
    assert drain.rate(1.0) == pytest.approx(900 / 2.0)  # Little's law
    drain.busy(1.0)
    for tenth in range(1, 51):
        drain.ended(100.0, 1.0 + tenth / 10, 2.0)
    assert drain.rate(6.0) == pytest.approx(1000.0, rel=0.05)
    drain.busy(None)
    assert drain.rate(6.0) is None  # nothing is in hand, and nobody waits


def test_a_broken_answer_is_no_work_done() -> None:
    drain = DrainRate()
    drain.began(100.0)
    drain.ended(100.0, 1.0, None)
    assert drain.rate(1.0) is None and drain.in_hand == 0.0


def test_work_is_prompt_and_answer_as_far_as_they_can_be_foreseen() -> None:
    known = Experience()
    assert known.work(400, None, None) == pytest.approx(101 + ANSWER_TOKENS)
    assert known.work(400, 10, None) == pytest.approx(111)
    assert known.work(400, 10, 4) == pytest.approx(141)
    assert known.work(400, "many", {"n": 3}) == known.work(400, None, None)  # the engine will say what is wrong
    assert known.work(400, 10**12, 10**12) < 10**6
    for _ in range(200):
        known.learn(400, 200, 20)
    assert known.work(400, None, None) == pytest.approx(221, rel=0.05)
