"""Plain tables: columns padded with spaces, nothing else, so that `awk` and people read the same thing.

Only on a terminal are phases coloured and long last columns cut to the width.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence

import typer

_COLOURS = {
    "ready": "green",
    "yes": "green",
    "failed": "red",
    "refused": "red",
    "no": "red",
    "lost": "red",
    "away": "red",
}
_ON_THE_WAY = ("pending", "preparing", "starting", "progressing", "draining", "cordoned", "leaving", "under-pressure")
_LEAST_LAST_COLUMN = 20


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if terminal else None
    for line in table(columns, rows, width=width, coloured=terminal and not os.environ.get("NO_COLOR")):
        typer.echo(line)


def table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, width: int | None = None, coloured: bool = False
) -> list[str]:
    """The lines of a table; `width` cuts the last column only, because names must stay whole to be copied."""
    cells = [list(columns), *([" ".join(cell.split()) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    if width is not None:
        room = max(width - sum(w + 2 for w in widths[:-1]), _LEAST_LAST_COLUMN)
        cells = [[*row[:-1], _cut(row[-1], room)] for row in cells]
    return ["  ".join(_cell(c, w, coloured) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells]


def _cut(text: str, room: int) -> str:
    return text if len(text) <= room else text[: room - 1] + "…"


def _cell(text: str, width: int, coloured: bool) -> str:
    colour = "yellow" if text in _ON_THE_WAY else _COLOURS.get(text)
    padding = " " * (width - len(text))
    return (typer.style(text, fg=colour) if coloured and colour else text) + padding
