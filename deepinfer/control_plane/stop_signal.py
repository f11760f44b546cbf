"""How a process of the control plane is told to end: SIGTERM or SIGINT, once to drain, once more to end at once."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine
from typing import Any

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def nothing() -> None:
    """Needs to be done."""


def stop_signal() -> asyncio.Event:
    """Set by the first signal; the second one ends the process at once."""
    asked = asyncio.Event()
    loop = asyncio.get_running_loop()

    def ask() -> None:
        asked.set()
        for each in _STOP_SIGNALS:
            loop.remove_signal_handler(each)
            signal.signal(each, signal.SIG_DFL)  # Python's own handler would raise in the midst of the clean-up

    for each in _STOP_SIGNALS:
        loop.add_signal_handler(each, ask)
    return asked


async def run_until(
    asked: asyncio.Event, work: Coroutine[Any, Any, None], before_its_end: Callable[[], None] = nothing
) -> None:
    """`work` is cancelled once somebody asked."""
    async with asyncio.TaskGroup() as tasks:
        working = tasks.create_task(work)
        await asked.wait()
        before_its_end()
        working.cancel()
