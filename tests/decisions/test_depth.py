"""How many batches are under way, for stages whose times are known."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepinfer.engine_shim.engines.layer_shard.batch import StageTime
from deepinfer.engine_shim.engines.layer_shard.pipeline.depth import MOST, Depth, Line

SEEN = (1, 2, 4, 8, 16, 32, 64)
Stage = tuple[float, float]
"""Seconds: fixed for a batch, and for each of its sequences."""


def taught(stages: list[Stage], hops: float, rounds: int = 30) -> Depth:
    depth = Depth()
    for sequences in SEEN * rounds:
        times = [StageTime(fixed + each * sequences) for fixed, each in stages]
        depth.learn(sequences, sum(time.computing for time in times) + hops, times)
    return depth


def rate(stages: list[Stage], hops: float, sequences: int, groups: int) -> float:
    """Tokens a second, by the pipeline's own arithmetic: a lap, or as long as the slowest stage has work."""
    size = math.ceil(sequences / groups)
    times = [fixed + each * size for fixed, each in stages]
    return sequences / max(sum(times) + hops, groups * max(times))


@pytest.mark.parametrize(
    ("stages", "hops", "sequences", "groups"),
    [
        ([(0.0, 0.001)] * 2, 0.0, 1, 1),
        ([(0.004, 0.001)] * 4, 0.01, 1, 1),
        ([(0.0, 0.001)] * 2, 0.0, 16, 2),
        ([(0.0, 0.001)] * 4, 0.0, 64, 4),
        ([(0.0, 0.003), (0.0, 0.001)], 0.0, 24, 2),
        ([(0.001, 0.0)] * 2, 0.0, 16, 1),
        ([(0.01, 0.0)] * 2, 0.0, 16, 1),
        ([(0.01, 0.001)] * 2, 0.0, 4, 2),
        ([(0.0, 0.001)], 0.0, 8, 1),
    ],
)
def test_groups_of_known_times(stages: list[Stage], hops: float, sequences: int, groups: int) -> None:
    assert taught(stages, hops).groups(sequences) == groups


def test_hops_of_ten_milliseconds_want_more_groups_than_stages() -> None:
    """Without fixed costs: as many as keep the slowest stage busy for a whole lap, sum(t + c) / max(t)."""
    stages, hops, sequences = [(0.0, 0.001)] * 3, 3 * 0.010, 60
    groups = taught(stages, hops).groups(sequences)
    t = 0.001 * math.ceil(sequences / groups)
    assert groups == math.ceil((3 * t + hops) / t) == 6


def test_fixed_costs_want_fewer_groups() -> None:
    """Every batch reads all weights."""
    found = [taught([(fixed, 0.001)] * 3, 0.030).groups(60) for fixed in (0.0, 0.01, 0.04, 0.1)]
    assert found == sorted(found, reverse=True)
    assert found[0] > found[-1]


def test_longer_hops_want_no_fewer_groups() -> None:
    found = [taught([(0.002, 0.001)] * 3, hops).groups(60) for hops in (0.0, 0.01, 0.03, 0.1, 0.3)]
    assert found == sorted(found)
    assert found[0] < found[-1]


@pytest.mark.parametrize(("sequences", "groups"), [(0, 1), (1, 1), (2, 2), (50, 2)])
def test_before_anything_was_learned(sequences: int, groups: int) -> None:
    assert Depth().groups(sequences) == groups


def test_another_number_of_stages_is_learned_from_the_beginning() -> None:
    depth = taught([(0.0, 0.001)] * 4, 0.5)
    assert depth.groups(32) > 4
    for sequences in SEEN:
        depth.learn(sequences, 0.002 * sequences, [StageTime(0.001 * sequences)] * 2)
    assert depth.groups(32) == 2


def test_times_that_change_are_followed() -> None:
    depth = taught([(0.0, 0.001)] * 2, 0.0)
    for _ in range(200):
        for sequences in (4, 8, 16):
            depth.learn(sequences, 2 * (0.1 + 0.0001 * sequences), [StageTime(0.1 + 0.0001 * sequences)] * 2)
    assert depth.groups(16) == 1


def test_time_in_a_queue_is_no_hop() -> None:
    depth = Depth()
    for sequences in SEEN * 30:
        times = [StageTime(0.001 * sequences, queued=5.0)] * 2
        depth.learn(sequences, 10.0 + 0.002 * sequences, times)
    assert depth.groups(16) == 2


@pytest.mark.parametrize("seen", [[8], [8, 8, 8]])
def test_a_line_through_one_place_takes_a_quarter_for_fixed(seen: list[int]) -> None:
    line = Line()
    for x in seen:
        line.learn(x, 4.0)
    assert (line.at(8), line.at(0), line.at(16)) == pytest.approx((4.0, 1.0, 7.0))


def test_a_line_never_falls_and_starts_at_nothing_or_more() -> None:
    falling, steep = Line(), Line()
    for _ in range(20):
        for x in (1, 10):
            falling.learn(x, 20.0 - x)
            steep.learn(x, float(x * x))
    assert falling.at(100) == falling.at(1) > 0
    assert steep.at(0) >= 0


TIMES = st.tuples(st.floats(0, 0.05), st.floats(0.0001, 0.01))


@settings(deadline=None)
@given(st.lists(TIMES, min_size=1, max_size=5), st.floats(0, 0.2), st.integers(1, 100))
def test_no_other_number_of_groups_would_be_much_better(stages: list[Stage], hops: float, sequences: int) -> None:
    groups = taught(stages, hops, rounds=5).groups(sequences)
    assert 1 <= groups <= min(sequences, MOST)
    best = max(rate(stages, hops, sequences, other) for other in range(1, min(sequences, MOST) + 1))
    assert rate(stages, hops, sequences, groups) >= best / 1.03
