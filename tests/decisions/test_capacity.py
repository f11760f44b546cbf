"""How much an engine is given before requests wait here: what it says, against what is sent."""

from __future__ import annotations

import pytest

from deepinfer.control_plane.router.capacity import AT_FIRST, MUTE_SECONDS, Capacity
from deepinfer.engine_shim.token_engine import EngineLoad


def sent_until_full(capacity: Capacity, work: float = 100.0, most: int = 10_000) -> int:
    count = 0
    while capacity.has_room(work, 0.0) and count < most:
        capacity.sent(work, 0.0)
        count += 1
    return count


def full(running: int, waiting: int, work: float = 100.0) -> Capacity:
    """That has said twice that no more run, and others wait."""
    capacity = Capacity()
    for _ in range(running + waiting):
        capacity.sent(work, 0.0)
    for _ in range(2):
        capacity.told(EngineLoad(running=running, waiting=waiting))
    return capacity


def test_before_its_first_word_an_engine_gets_what_one_card_runs() -> None:
    assert sent_until_full(Capacity()) == AT_FIRST


def test_a_full_engine_gets_a_little_more_than_it_runs() -> None:
    capacity = full(running=20, waiting=30)
    assert not capacity.has_room(100.0, 0.0)
    for _ in range(30):
        capacity.over(100.0)
    assert sent_until_full(capacity) == 4  # a tenth of those that run, and two
    capacity.over(100.0)
    assert sent_until_full(capacity) == 1  # one for one


def test_work_counts_not_requests() -> None:
    capacity = full(running=20, waiting=2)
    for _ in range(22):
        capacity.over(100.0)
    capacity.told(EngineLoad(running=20, waiting=1))
    assert sent_until_full(capacity, work=1000.0) <= 3


def test_what_waits_for_the_end_of_a_long_step_does_not_make_an_engine_full() -> None:
    capacity = Capacity()
    capacity.knows(seats=64, blocks=1000, block_size=16, longest=0)
    for _ in range(5):
        capacity.sent(100.0, 0.0)
    for _ in range(2):
        capacity.told(EngineLoad(running=1, waiting=4, kv_blocks_used=700))
    assert capacity.has_room(100.0, 0.0)
    for _ in range(2):
        capacity.told(EngineLoad(running=1, waiting=4, kv_blocks_used=800))
    assert not capacity.has_room(100.0, 0.0)


def test_the_first_words_of_a_burst_do_not_throttle_it() -> None:
    capacity = Capacity()
    for _ in range(50):
        capacity.sent(100.0, 0.0)
    capacity.told(EngineLoad(running=1, waiting=49))
    assert capacity.has_room(100.0, 0.0)
    capacity.told(EngineLoad(running=50, waiting=0))
    assert capacity.has_room(100.0, 0.0)


def test_an_engine_where_none_wait_may_have_twice_as_much() -> None:
    capacity = Capacity()
    assert sent_until_full(capacity) == AT_FIRST
    capacity.told(EngineLoad(running=AT_FIRST))
    assert AT_FIRST <= sent_until_full(capacity) <= AT_FIRST + 2


def test_what_an_engine_says_of_itself_is_its_first_limit() -> None:
    few = Capacity()
    few.knows(seats=4, blocks=6250, block_size=16, longest=8192)
    assert sent_until_full(few) == 4
    small = Capacity()
    small.knows(seats=256, blocks=100, block_size=10, longest=800)
    assert sent_until_full(small) == 10
    assert small.at_most(1e6) == 800


def test_what_other_gateways_sent_takes_room_too() -> None:
    capacity = Capacity()
    capacity.sent(100.0, 0.0)
    for _ in range(2):
        capacity.told(EngineLoad(running=20, waiting=20))
    assert not capacity.has_room(100.0, 0.0)


@pytest.mark.parametrize(("later", "room"), [(0.0, False), (MUTE_SECONDS + 1, True)])
def test_an_engine_that_never_tells_its_load_is_not_limited(later: float, room: bool) -> None:
    capacity = Capacity()
    sent_until_full(capacity)
    assert capacity.has_room(100.0, later) is room


def test_an_idle_engine_takes_whatever_comes() -> None:
    capacity = full(running=2, waiting=3)
    for _ in range(5):
        capacity.over(100.0)
    capacity.told(EngineLoad())
    assert capacity.has_room(1e9, 0.0)
