"""The loop looks again after every change, conflict and failure."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import pytest

from deepinfer.fleet.convergence import keep_converging
from deepinfer.fleet.errors import StoreConflict


class Passes:
    """What each pass does in turn; `ended` is set when all have been made."""

    def __init__(self, *outcomes: Exception | None, during: Callable[[], None] = lambda: None) -> None:
        self.outcomes = list(outcomes)
        self.during = during
        self.ended = asyncio.Event()

    async def converge(self) -> None:
        self.during()
        outcome = self.outcomes.pop(0)
        if not self.outcomes:
            self.ended.set()
        if outcome:
            raise outcome


async def run(passes: Passes, changed: asyncio.Event, resync_seconds: float = 60) -> None:
    loop = asyncio.create_task(keep_converging(passes.converge, changed, resync_seconds))
    await asyncio.wait_for(passes.ended.wait(), 10)
    loop.cancel()
    await asyncio.gather(loop, return_exceptions=True)


async def test_a_conflict_or_a_failure_leads_to_another_pass(caplog: pytest.LogCaptureFixture) -> None:
    await run(Passes(StoreConflict(), ZeroDivisionError(), StoreConflict(), None), asyncio.Event())
    logged = [record.exc_info[0] for record in caplog.records if record.levelno == logging.ERROR and record.exc_info]
    assert logged == [ZeroDivisionError]


async def test_a_pass_is_made_at_least_every_resync_period() -> None:
    await run(Passes(None, None, None), asyncio.Event(), resync_seconds=0.01)


async def test_a_change_during_a_pass_is_not_lost() -> None:
    changed = asyncio.Event()
    await run(Passes(None, None, during=changed.set), changed)
