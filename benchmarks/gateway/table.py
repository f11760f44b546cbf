"""Rounds as a table for people: medians over the rounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median

from benchmarks.gateway.measuring import Measured

_Column = tuple[str, str, Callable[[Measured], float]]
_COLUMNS: tuple[_Column, ...] = (
    ("first byte ms", "{:.2f}", lambda m: m.first_byte_seconds * 1e3),
    ("req/s", "{:,.0f}", lambda m: m.whole.seen.requests / m.whole.seen.seconds),
    ("p50 ms", "{:.2f}", lambda m: m.whole.seen.p50 * 1e3),
    ("p99 ms", "{:.2f}", lambda m: m.whole.seen.p99 * 1e3),
    ("CPU us/request", "{:,.1f}", lambda m: m.cpu_request),
    ("chunks/s", "{:,.0f}", lambda m: m.streams.seen.events / m.streams.seen.seconds),
    ("CPU us/chunk", "{:,.2f}", lambda m: m.cpu_chunk),
    ("CPU us/paced chunk", "{:,.1f}", lambda m: m.paced.per_event if m.paced else 0.0),
    ("failed", "{:,.0f}", lambda m: m.failed),
)


def table(rounds: dict[str, Sequence[Measured]], memory_bytes: dict[str, int]) -> str:
    """A row for each gateway."""
    rows = [["gateway", *(name for name, _, _ in _COLUMNS), "memory MB"]]
    for name, measured in rounds.items():
        values = [_cell(shown, [of(each) for each in measured]) for _, shown, of in _COLUMNS]
        rows.append([name, *values, f"{memory_bytes[name] / 1e6:,.0f}" if memory_bytes[name] else "-"])
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    )


def _cell(shown: str, values: Sequence[float]) -> str:
    return shown.format(value) if (value := median(values)) else "-"
