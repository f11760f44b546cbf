"""A cell for people: a row for each policy."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from benchmarks.routing_sim.figures import Cell, Figures

_COLUMNS: tuple[tuple[str, str, Callable[[Figures], float]], ...] = (
    ("TTFT ms", "{:,.0f}", lambda f: f.ttft_mean * 1e3),
    ("p99 ms", "{:,.0f}", lambda f: f.ttft_p99 * 1e3),
    ("tok/s", "{:,.0f}", lambda f: f.rate),
    ("ms/token", "{:.1f}", lambda f: f.seconds_per_token * 1e3),
    ("cached", "{:.1%}", lambda f: f.cached_share),
    ("prefill busy", "{:.0%}", lambda f: f.prefill_busy),
)


def table(cell: Cell, policies: Mapping[str, Figures]) -> str:
    trace, fleet = cell
    rows = [[f"{trace}, {fleet}", *(name for name, _, _ in _COLUMNS)]]
    rows += [[name, *(shown.format(of(figures)) for _, shown, of in _COLUMNS)] for name, figures in policies.items()]
    return "\n".join(f"{row[0]:20}" + "".join(f"{value:>14}" for value in row[1:]) for row in rows)
