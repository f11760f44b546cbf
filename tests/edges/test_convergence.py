"""The loop looks again after every change, conflict and failure."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import pytest

from deepinfer.fleet.convergence import keep_converging
from deepinfer.fleet.errors import StoreConflict, StoreFull, StoreUnavailable


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


async def test_a_store_that_does_not_answer_is_waited_for_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    await run(Passes(StoreUnavailable("gone"), StoreFull("full"), None), asyncio.Event())
    assert [(record.levelno, record.getMessage()) for record in caplog.records if record.levelno > logging.DEBUG] == [
        (logging.WARNING, "waiting for the store: gone")
    ]


async def test_a_pass_is_made_at_least_every_resync_period() -> None:
    await run(Passes(None, None, None), asyncio.Event(), resync_seconds=0.01)


async def test_a_change_during_a_pass_is_not_lost() -> None:
    changed = asyncio.Event()
    await run(Passes(None, None, during=changed.set), changed)


async def test_a_burst_of_changes_is_one_reason_to_look_and_the_first_is_not_delayed() -> None:
    changed, passed = asyncio.Event(), asyncio.Semaphore(0)

    async def converge() -> None:
        passed.release()

    loop = asyncio.create_task(keep_converging(converge, changed, 60, rest_seconds=0.3))
    await passed.acquire()
    await asyncio.sleep(0.4)  # it has rested
    for _ in range(200):
        changed.set()
        await asyncio.sleep(0)
    passes = 0
    while not passed.locked():
        await passed.acquire()
        passes += 1
    assert passes == 1  # the first change, at once
    async with asyncio.timeout(5):
        await passed.acquire()  # all the others, after a rest
    await asyncio.sleep(0.4)
    assert passed.locked()
    loop.cancel()
    await asyncio.gather(loop, return_exceptions=True)
