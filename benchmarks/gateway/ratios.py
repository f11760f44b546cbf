"""Ours over a peer's, round by round, so that what the machine does besides meets both. Lower is better."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median

from benchmarks.gateway.measuring import Measured

_RATIOS: dict[str, Callable[[Measured], float]] = {
    "cpu_request": lambda m: m.cpu_request,
    "cpu_chunk": lambda m: m.cpu_chunk,
    "first_byte": lambda m: m.first_byte_seconds,
    "p99": lambda m: m.whole.seen.p99,
}


def ratios(ours: Sequence[Measured], theirs: Sequence[Measured]) -> str:
    """`name=median`, in order; nan where there is nothing to compare with."""
    pairs = list(zip(ours, theirs, strict=False))
    return " ".join(f"{name}={_median([_over(of(a), of(b)) for a, b in pairs]):.3f}" for name, of in _RATIOS.items())


def _over(ours: float, theirs: float) -> float:
    return ours / theirs if theirs else float("nan")


def _median(values: Sequence[float]) -> float:
    return median(values) if values else float("nan")
