"""Which replica answers: tables and properties, values in and values out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepinfer.control_plane.router.candidate import Candidate, RoutedRequest
from deepinfer.control_plane.router.choose import any_of, cheapest, eligible, in_turn, least_loaded, sticky
from deepinfer.control_plane.router.health import Standing
from deepinfer.engine_shim.token_engine import EngineLoad

Choose = Callable[[tuple[Candidate, ...]], Candidate]


def candidate(placement: str, in_flight: int = 0, waiting: int = 0, last_used: int = 0) -> Candidate:
    return Candidate(placement, 1, "node-1", "127.0.0.1:1", in_flight, last_used, EngineLoad(waiting=waiting))


@pytest.mark.parametrize(
    ("candidates", "chosen"),
    [
        ((candidate("a"),), "a"),
        ((candidate("a", in_flight=1), candidate("b")), "b"),
        ((candidate("a", waiting=1), candidate("b")), "b"),
        ((candidate("a", in_flight=1), candidate("b", waiting=9)), "b"),  # ours is exact, the engine's word is old
        ((candidate("a", last_used=7), candidate("b", last_used=3)), "b"),
        ((candidate("b"), candidate("a")), "a"),
    ],
)
def test_the_least_busy_is_chosen(candidates: tuple[Candidate, ...], chosen: str) -> None:
    assert least_loaded(candidates).placement == chosen


def test_what_failed_this_request_is_not_chosen_again() -> None:
    idle, busy = candidate("a"), candidate("b", in_flight=5)
    failed = RoutedRequest("chat", frozenset({"a"}))
    assert eligible((idle, busy), failed, None) == [busy]
    assert not eligible((idle,), failed, None)
    assert eligible((idle, busy), RoutedRequest("chat"), None) == (idle, busy)


def test_equal_replicas_take_turns() -> None:
    replicas = {name: candidate(name) for name in "abc"}
    taken: Counter[str] = Counter()
    for turn in range(1, 31):
        chosen = least_loaded(tuple(replicas.values()))
        taken[chosen.placement] += 1
        replicas[chosen.placement] = replace(chosen, last_used=turn)
    assert taken == {"a": 10, "b": 10, "c": 10}


CANDIDATES = st.lists(
    st.builds(
        candidate,
        st.text("abcdef", min_size=1, max_size=3),
        st.integers(0, 4),
        st.integers(0, 4),
        st.integers(0, 9),
    ),
    unique_by=lambda c: c.placement,
    min_size=1,
    max_size=8,
)


@given(CANDIDATES, st.integers(0, 10**6), st.randoms(use_true_random=False))
def test_the_order_of_the_candidates_never_matters(candidates: list[Candidate], turn: int, order: object) -> None:
    shuffled = list(candidates)
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    assert least_loaded(shuffled) == least_loaded(candidates)
    assert in_turn(shuffled) == in_turn(candidates)
    assert any_of(shuffled, turn) == any_of(candidates, turn)
    assert sticky(shuffled, "a") == sticky(candidates, "a")
    costs = {c.placement: c.in_flight * 0.5 for c in candidates}
    at = cheapest(shuffled, [costs[c.placement] for c in shuffled])
    assert shuffled[at] == candidates[cheapest(candidates, list(costs.values()))]


@given(CANDIDATES)
def test_nothing_idler_is_left_aside(candidates: list[Candidate]) -> None:
    assert least_loaded(candidates).in_flight == min(c.in_flight for c in candidates)


def test_the_cheapest_is_chosen_and_of_those_about_as_cheap_the_least_loaded() -> None:
    busy, idle, dear = candidate("a", in_flight=3), candidate("b"), candidate("c")
    replicas = (busy, idle, dear)
    assert replicas[cheapest(replicas, (1.0, 1.01, 2.0))] == idle
    assert replicas[cheapest(replicas, (1.0, 1.1, 2.0))] == busy


def test_a_burst_of_like_requests_is_spread() -> None:
    replicas = [candidate(name) for name in "abcd"]
    for turn in range(1, 41):
        at = cheapest(replicas, [0.5] * 4)
        replicas[at] = replace(replicas[at], in_flight=replicas[at].in_flight + 1, last_used=turn)
    assert [c.in_flight for c in replicas] == [10] * 4


@pytest.mark.parametrize("choose", [lambda cs: cs[cheapest(cs, [0.1, 5.0])], lambda cs: any_of(cs, 7), in_turn])
def test_who_is_to_be_probed_comes_first_whatever_the_policy_and_who_fails_comes_last(choose: Choose) -> None:
    sound, other = candidate("a"), candidate("b", in_flight=9)
    assert choose((sound, replace(other, standing=Standing.PROBE))).placement == "b"
    assert choose((replace(sound, standing=Standing.EJECTED), other)).placement == "b"


def test_a_session_stays_unless_something_is_wrong_there() -> None:
    idle, busy = candidate("a"), candidate("b", in_flight=9)
    assert sticky((idle, busy), "b") == busy
    assert sticky((idle, busy), "gone") == idle
    assert sticky((idle, replace(busy, standing=Standing.EJECTED)), "b") == idle


def test_chance_is_the_same_for_the_same_turn_and_even() -> None:
    candidates = [candidate(name) for name in "abcd"]
    taken = Counter(any_of(candidates, turn).placement for turn in range(4000))
    assert all(abs(count - 1000) < 150 for count in taken.values())
    assert any(any_of(candidates, turn) == any_of(candidates, turn + 1) for turn in range(20))  # no order in it
