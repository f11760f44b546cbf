"""What a policy came to, and how ours compares: figures of runs, means over seeds, ratios."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from benchmarks.routing_sim.policies import LEAST_LOADED, OURS
from benchmarks.routing_sim.replay import Played

Cell = tuple[str, str]
"""A trace and a fleet, by name."""


@dataclass(frozen=True, slots=True)
class Figures:
    ttft_mean: float
    ttft_p99: float
    rate: float  # output tokens a second of all replicas, while sessions arrive
    seconds_per_token: float  # of a stream, after its first
    cached_share: float  # of all prompt tokens
    prefill_busy: float


def figures_of(played: Played) -> Figures:
    served = played.served
    ttfts = sorted(each.ttft for each in served)
    return Figures(
        ttft_mean=fmean(ttfts),
        ttft_p99=ttfts[int(0.99 * len(ttfts))],
        rate=played.rate,
        seconds_per_token=fmean(each.seconds_per_token for each in served),
        cached_share=sum(each.cached_tokens for each in served) / sum(each.prompt_tokens for each in served),
        prefill_busy=played.prefill_busy,
    )


def mean_of(found: Sequence[Figures]) -> Figures:
    """Of the seeds'."""
    names = Figures.__dataclass_fields__
    return Figures(**{name: fmean(getattr(each, name) for each in found) for name in names})


def last_line(cells: Mapping[Cell, Mapping[str, Figures]], none: str) -> str:
    """Ours over the best peer's of a cell, in the worst cell; and on the trace `none` ours over least-loaded's."""
    ratios = [_ratios(policies) for policies in cells.values()]
    means = [
        policies[OURS].ttft_mean / policies[LEAST_LOADED].ttft_mean
        for (trace, _), policies in cells.items()
        if trace == none
    ]
    return (
        f"bench-routing-sim worst_ttft_mean={_most(mean for mean, _, _ in ratios):.3f}"
        f" worst_ttft_p99={_most(p99 for _, p99, _ in ratios):.3f}"
        f" worst_rate={min((rate for _, _, rate in ratios), default=float('nan')):.3f}"
        f" none_vs_least={_most(means):.3f}"
    )


def _ratios(policies: Mapping[str, Figures]) -> tuple[float, float, float]:
    ours, peers = policies[OURS], [figures for name, figures in policies.items() if name != OURS]
    return (
        ours.ttft_mean / min(peer.ttft_mean for peer in peers),
        ours.ttft_p99 / min(peer.ttft_p99 for peer in peers),
        ours.rate / max(peer.rate for peer in peers),
    )


def _most(values: Iterable[float]) -> float:
    return max(values, default=float("nan"))
