"""An event loop whose clock jumps to the next timer when nothing is ready, so that hours of sleeping cost milliseconds.

Everything that waits must wait on timers or on other tasks of the loop: there is no I/O to wait for.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class NothingLeftToHappen(RuntimeError):
    """Every task waits, and no timer is set: one of them waits for what never comes."""


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Begins at 0 s."""

    def __init__(self) -> None:
        self._clock = _Clock()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now


class _Clock(selectors.SelectSelector):
    """The loop asks its selector to wait until the next timer is due: here, that is when it becomes due."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise NothingLeftToHappen("Every task waits, and no timer is set.")
        self.now += timeout
        return []


def run(main: Coroutine[Any, Any, T]) -> T:
    """As `asyncio.run`, in virtual time."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)
