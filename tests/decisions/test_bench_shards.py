"""What `make bench-shards` makes of what it measures."""

from __future__ import annotations

import pytest

from benchmarks.shards.cuts import even_cuts
from benchmarks.shards.figures import last_line, median_ratio, percentile
from benchmarks.shards.rounds import in_turn
from benchmarks.shards.steps import Step, hop_of, load_of, resumed_after


def test_the_last_line_has_every_key() -> None:
    line = last_line({"hop_ms": 0.1234, "two_stages_32": 0.97})
    assert line == (
        "bench-shards hop_ms=0.123 two_stages_32=0.970 delay_10ms=nan one_stage_b1_vs_transformers=nan "
        "one_stage_b32_vs_vllm=nan"
    )


def test_a_ratio_is_the_median_of_the_rounds() -> None:
    rounds = [{"a": 10.0, "b": 20.0}, {"a": 30.0, "b": 10.0}, {"a": 9.0, "b": 10.0}]
    assert median_ratio(rounds, "a", "b") == pytest.approx(0.9)


@pytest.mark.parametrize(("share", "value"), [(0.5, 2), (0.51, 3), (1, 4), (0, 1)])
def test_percentiles_are_values_that_came(share: float, value: float) -> None:
    assert percentile([4, 2, 1, 3], share) == value


@pytest.mark.parametrize(
    ("stages", "taken", "cuts"),
    [(2, (15.0, 15.0), (15,)), (2, (15.0, 23.0), (19,)), (3, (15.0, 23.0), (12, 25)), (2, (15.0, 60.0), (29,))],
)
def test_cuts_make_stages_equally_long(stages: int, taken: tuple[float, float], cuts: tuple[int, ...]) -> None:
    """Choosing tokens takes as long as eight layers in the second and third row."""
    assert even_cuts(30, stages, taken, 15) == cuts


def test_who_is_first_changes() -> None:
    assert in_turn(["a", "b", "c"], 1) == ["a", "b", "c"]
    assert in_turn(["a", "b", "c"], 2) == ["c", "b", "a"]


def step(began: float, *, took: float = 0.021, sequences: int = 1, tokens: int = 1) -> Step:
    return Step(began, began + took, sequences, tokens, [0.01, 0.01], [0.0, 0.0002])


def test_a_hop_is_what_a_lap_takes_beside_computing() -> None:
    prefill = step(-1.0, tokens=32)
    hop = hop_of([prefill, step(0.0), step(0.022), step(0.044)])
    assert (hop.lap, hop.way, hop.queued) == pytest.approx((0.001, 0.0005, 0.0002))


def test_the_load_of_a_pipeline_with_two_steps_under_way() -> None:
    load = load_of([step(0.0, took=0.02, sequences=16, tokens=16), step(0.01, took=0.02, sequences=16, tokens=16)])
    assert load.busy == pytest.approx((2 / 3, 2 / 3))
    assert load.under_way == pytest.approx(4 / 3)
    assert load.sequences == 16


def test_a_stream_resumes_after_its_longest_silence() -> None:
    assert resumed_after([0.0, 1.0, 1.2, 4.0, 4.1], killed=1.1) == pytest.approx(2.8)
    assert resumed_after([0.0, 1.0, 3.0, 3.1], killed=1.1) == pytest.approx(1.9)
