"""What a terminal shows while one answer is long in coming; everywhere else nothing is shown.

The request keeps the command's own thread busy, so a second one turns the spinner.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

SLOW_SECONDS = 1.0
_TURN_SECONDS = 0.1
FORESEEING = "asking the server what would happen"


@contextmanager
def patience(sentence: str) -> Iterator[None]:
    """Shows the sentence once the block has taken longer than a second."""
    if not sys.stderr.isatty():
        yield
        return
    ended = threading.Event()
    showing = threading.Thread(target=_show, args=(sentence, ended))
    showing.start()
    try:
        yield
    finally:
        ended.set()
        showing.join()


def spinner() -> Bar:
    """On stderr, gone at its end; who has it refreshes it."""
    from rich.console import Console
    from rich.progress import Progress as Bar
    from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    return Bar(*columns, console=Console(stderr=True), transient=True, auto_refresh=False)  # without a thread


def _show(sentence: str, ended: threading.Event) -> None:
    if ended.wait(SLOW_SECONDS):
        return
    with spinner() as bar:
        bar.add_task(sentence)
        while not ended.wait(_TURN_SECONDS):
            bar.refresh()
