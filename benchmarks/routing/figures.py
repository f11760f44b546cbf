"""What a run showed, means over the seeds, and the last line: our kv policy beside the best of the peer's."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from statistics import fmean, quantiles

from benchmarks.routing.conversing import Turn

OURS, PEERS = "deepinfer", "vllm-router"
JUDGED, JUDGED_SHAPE = "kv", "hard"


@dataclass(frozen=True, order=True)
class Policy:
    """Of ours or of the peer's."""

    side: str
    name: str

    def __str__(self) -> str:
        return f"{self.side}:{self.name}"


@dataclass(frozen=True)
class Figures:
    """Of one run, or means of several. Shares of all prompt tokens; times in seconds."""

    cached_share: float
    oracle_share: float
    ttft_mean: float
    ttft_p90: float
    seconds: float


Found = Mapping[tuple[str, Policy], Figures]
"""By the shape's name and the policy."""


def figures(turns: Sequence[Turn], oracle_share: float, seconds: float) -> Figures:
    firsts = [turn.first_token for turn in turns]
    return Figures(
        sum(turn.cached_tokens for turn in turns) / sum(turn.prompt_tokens for turn in turns),
        oracle_share,
        fmean(firsts),
        quantiles(firsts, n=10, method="inclusive")[-1],
        seconds,
    )


def mean(runs: Sequence[Figures]) -> Figures:
    return Figures(*map(fmean, zip(*map(astuple, runs), strict=True)))


def table(found: Found) -> str:
    """A row for each policy and shape."""
    rows: list[tuple[str, ...]] = [
        ("shape", "policy", "cached %", "oracle %", "TTFT mean ms", "TTFT p90 ms", "seconds")
    ]
    for (shape, policy), of in found.items():
        shares = (f"{100 * share:.1f}" for share in (of.cached_share, of.oracle_share))
        rows.append(
            (shape, str(policy), *shares, f"{1e3 * of.ttft_mean:.0f}", f"{1e3 * of.ttft_p90:.0f}", f"{of.seconds:.1f}")
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join((row[0].ljust(widths[0]), row[1].ljust(widths[1]), *(map(str.rjust, row[2:], widths[2:]))))
        for row in rows
    )


def last_line(found: Found) -> str:
    """nan where there is nothing to compare with."""
    ours = _ours(found, JUDGED_SHAPE)
    gain = oracle = math.nan
    if ours is not None:
        gain = 100 * (ours.cached_share - _best(found, JUDGED_SHAPE, lambda of: of.cached_share, max))
        oracle = ours.cached_share / ours.oracle_share
    mean_ratio = _worst_ratio(found, lambda of: of.ttft_mean)
    p90_ratio = _worst_ratio(found, lambda of: of.ttft_p90)
    return (
        f"bench-routing cached_gain_points={gain:.2f} oracle_share={oracle:.3f} "
        f"ttft_mean={mean_ratio:.3f} ttft_p90={p90_ratio:.3f}"
    )


def _worst_ratio(found: Found, figure: Callable[[Figures], float]) -> float:
    """Ours over the best of the peers', on the shape where that is highest."""
    ratios = [
        figure(ours) / _best(found, shape, figure, min)
        for shape in dict.fromkeys(shape for shape, _ in found)
        if (ours := _ours(found, shape)) is not None
    ]
    return max(ratios, default=math.nan, key=lambda ratio: (math.isnan(ratio), ratio))


def _ours(found: Found, shape: str) -> Figures | None:
    return found.get((shape, Policy(OURS, JUDGED)))


def _best(found: Found, shape: str, figure: Callable[[Figures], float], best: Callable[[list[float]], float]) -> float:
    theirs = [figure(of) for (where, policy), of in found.items() if where == shape and policy.side == PEERS]
    return best(theirs) if theirs else math.nan
