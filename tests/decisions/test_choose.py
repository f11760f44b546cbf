"""Which replica answers: tables and properties, values in and values out."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepinfer.control_plane.router.candidate import Candidate, RoutedRequest
from deepinfer.control_plane.router.choose import choose
from deepinfer.engine_shim.token_engine import EngineLoad

REQUEST = RoutedRequest("chat")


def candidate(placement: str, in_flight: int = 0, waiting: int = 0, last_used: int = 0) -> Candidate:
    return Candidate(placement, 1, "node-1", "127.0.0.1:1", in_flight, last_used, EngineLoad(waiting=waiting))


@pytest.mark.parametrize(
    ("candidates", "chosen"),
    [
        ((), None),
        ((candidate("a"),), "a"),
        ((candidate("a", in_flight=1), candidate("b")), "b"),
        ((candidate("a", waiting=1), candidate("b")), "b"),
        ((candidate("a", in_flight=1), candidate("b", waiting=9)), "b"),  # ours is exact, the engine's word is old
        ((candidate("a", last_used=7), candidate("b", last_used=3)), "b"),
        ((candidate("b"), candidate("a")), "a"),
    ],
)
def test_the_least_busy_is_chosen(candidates: tuple[Candidate, ...], chosen: str | None) -> None:
    choice = choose(candidates, REQUEST)
    assert (choice and choice.placement) == chosen


def test_what_failed_this_request_is_not_chosen_again() -> None:
    idle, busy = candidate("a"), candidate("b", in_flight=5)
    assert choose((idle, busy), RoutedRequest(REQUEST.model, frozenset({"a"}))) == busy
    assert choose((idle,), RoutedRequest(REQUEST.model, frozenset({"a"}))) is None


def test_equal_replicas_take_turns() -> None:
    replicas = {name: candidate(name) for name in "abc"}
    taken: Counter[str] = Counter()
    for turn in range(1, 31):
        chosen = choose(tuple(replicas.values()), REQUEST)
        assert chosen is not None
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
    max_size=8,
)


@given(CANDIDATES, st.randoms(use_true_random=False))
def test_the_order_of_the_candidates_never_matters(candidates: list[Candidate], order: object) -> None:
    shuffled = list(candidates)
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    assert choose(shuffled, REQUEST) == choose(candidates, REQUEST)


@given(CANDIDATES)
def test_nothing_idler_is_left_aside(candidates: list[Candidate]) -> None:
    chosen = choose(candidates, REQUEST)
    assert (chosen is None) == (not candidates)
    assert all(chosen is None or chosen.in_flight <= other.in_flight for other in candidates)
