"""From rounds to figures. Pure. A ratio is taken within a round, where both had the same noise; then the median."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

KEYS = ("hop_ms", "two_stages_32", "delay_10ms", "one_stage_b1_vs_transformers", "one_stage_b32_vs_vllm")

Rates = Sequence[Mapping[str, float]]
"""Of each round: side -> tokens a second."""


def median_ratio(rounds: Rates, ours: str, theirs: str) -> float:
    return statistics.median(rates[ours] / rates[theirs] for rates in rounds)


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of all do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def table(streams: int, rounds: Rates, beside: str) -> list[str]:
    """A line for each side: its median rate, and its median ratio to the side `beside`."""
    rows = [f"{f'{streams} streams':36}{'tokens/s':>10}{f'by {beside}':>20}"]
    for name in rounds[0]:
        rate = statistics.median(rates[name] for rates in rounds)
        ratios = sorted(rates[name] / rates[beside] for rates in rounds)
        spread = "" if name == beside else f"{statistics.median(ratios):.3f} ({ratios[0]:.3f}-{ratios[-1]:.3f})"
        rows.append(f"  {name:34}{rate:10.1f}{spread:>26}")
    return rows


def last_line(figures: Mapping[str, float]) -> str:
    """Every key, in order; nan for what was not measured."""
    return "bench-shards " + " ".join(f"{key}={figures.get(key, math.nan):.3f}" for key in KEYS)
