"""When an engine counts as stalled: value in, verdict out."""

from __future__ import annotations

import pytest

from deepinfer.engine_shim.stall import Sample, Standing, Verdict, after, limit_seconds, verdict
from deepinfer.engine_shim.token_engine import EngineLoad


@pytest.mark.parametrize(
    ("load", "limit"),
    [
        (EngineLoad(), 10),
        (EngineLoad(seconds_per_output_token=0.1), 10),
        (EngineLoad(seconds_per_output_token=2.0), 40),
        (EngineLoad(waiting_prefill_tokens=2000), 100),  # its rate is not known yet
        (EngineLoad(waiting_prefill_tokens=2000, prefill_tokens_per_second=100), 60),
        (EngineLoad(waiting_prefill_tokens=2000, prefill_tokens_per_second=10_000), 10),
        (EngineLoad(waiting_prefill_tokens=10**6, prefill_tokens_per_second=8192), 10),  # one step shows work
    ],
)
def test_patience_grows_with_what_the_engine_has_to_do(load: EngineLoad, limit: float) -> None:
    assert limit_seconds(load, 10) == pytest.approx(limit)


def looks(*samples: tuple[int, int]) -> list[Verdict]:
    """A look each second: (requests in hand, work done)."""
    standing, verdicts = Standing(0), []
    for in_hand, work_done in samples:
        standing = after(standing, Sample(1.0, in_hand, work_done, EngineLoad()), 4)
        verdicts.append(verdict(standing))
    return verdicts


def test_work_in_hand_and_none_done_is_asked_for_then_found_stalled() -> None:
    fine, ask, stalled = Verdict
    assert looks(*[(1, 0)] * 4) == [fine, ask, ask, stalled]


@pytest.mark.parametrize("samples", [[(0, 0)] * 20, [(1, n) for n in range(20)], [(1, 0), (1, 0), (0, 0)] * 7])
def test_an_engine_that_works_or_has_nothing_to_do_is_not_stalled(samples: list[tuple[int, int]]) -> None:
    assert Verdict.STALLED not in looks(*samples)


def test_one_token_starts_the_clock_anew() -> None:
    assert looks((9, 5), (9, 5), (9, 5), (9, 6), (9, 6), (9, 6))[-1] is Verdict.ASK


def test_a_core_that_computes_long_in_one_step_has_more_patience() -> None:
    standing = Standing(0)
    for _ in range(40):
        standing = after(standing, Sample(1.0, 1, 0, EngineLoad(), busy=True), 4)
    assert verdict(standing) is Verdict.ASK
    for _ in range(10):
        standing = after(standing, Sample(1.0, 1, 0, EngineLoad(), busy=True), 4)
    assert verdict(standing) is Verdict.STALLED
