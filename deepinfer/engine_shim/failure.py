"""Waits until a ready engine fails: it says that it broke, or it has work in hand and does none.

While no request runs nothing is looked at, but for one token now and then: a core that hangs while idle would otherwise
be found by the first request after it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Final

from deepinfer.engine_shim.served_engine import ServedEngine
from deepinfer.engine_shim.stall import Sample, Standing, Verdict, after, verdict
from deepinfer.engine_shim.status import ShimStatus
from deepinfer.engine_shim.token_engine import EngineLoad, SamplingParams
from deepinfer.engine_shim.wire import GenerateRequest

_LOOK_SECONDS: Final = 0.5
_ASK_IDLE_SECONDS: Final = 60.0
_LONG: Final = 1 / 8  # of a stall's limit

log = logging.getLogger(__name__)


async def why_it_failed(engine: ServedEngine, status: ShimStatus, stall_seconds: float) -> str:
    """Waits for the failure and tells it, without a full stop. With 0 seconds stalls are not seen."""
    async with asyncio.TaskGroup() as tasks:
        ways = [tasks.create_task(_told(engine), name="engine breaks")]
        if stall_seconds:
            watch = StallWatch(engine, status, stall_seconds)
            ways.append(tasks.create_task(watch.stalled(), name="engine stalls"))
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        reason = next(way.result() for way in ways if way.done())
        for way in ways:
            way.cancel()
    return reason


async def _told(engine: ServedEngine) -> str:
    return await engine.broken()


class StallWatch:
    """Looks twice a second while requests run. The engine's own thread or process is never asked by the looks."""

    def __init__(self, engine: ServedEngine, status: ShimStatus, stall_seconds: float) -> None:
        self._engine = engine
        self._status = status
        self._stall_seconds = stall_seconds
        self._asking: asyncio.Task[None] | None = None
        self._cpu: float | None = None  # at the last look that saw no work done

    async def stalled(self) -> str:
        async with self._touched() as touched, asyncio.TaskGroup() as tasks:
            standing = None
            while standing is None:
                await self._until_work_or_time_to_ask(touched, tasks)
                standing = await self._while_in_hand(tasks)
        return f"it computed nothing for {standing.idle_seconds:.0f} s with {_counted(standing.in_hand)} in hand"

    async def _until_work_or_time_to_ask(self, touched: asyncio.Event, tasks: asyncio.TaskGroup) -> None:
        while not self._in_hand(self._engine.load()):
            touched.clear()
            try:
                async with asyncio.timeout(_ASK_IDLE_SECONDS):
                    await touched.wait()
            except TimeoutError:
                self._ask(tasks)

    async def _while_in_hand(self, tasks: asyncio.TaskGroup) -> Standing | None:
        """None when all work is done; else how it stood when it was found stalled."""
        loop = asyncio.get_running_loop()
        standing, looked = Standing(self._engine.work_done()), loop.time()
        in_hand = self._in_hand(self._engine.load())
        try:
            while in_hand:
                await asyncio.sleep(_LOOK_SECONDS)
                seconds = min(loop.time() - looked, 2 * _LOOK_SECONDS)  # more than that: this process stood still too
                looked = loop.time()
                work_done = self._engine.work_done()
                busy = self._is_busy(seconds, standing, moved=work_done != standing.work_done)
                load = self._engine.load()
                in_hand = self._in_hand(load)
                sample = Sample(seconds, in_hand, work_done, load, busy)
                standing = after(standing, sample, self._stall_seconds)
                self._status.stands_still(standing.idle_seconds)
                match verdict(standing):
                    case Verdict.STALLED:
                        return standing
                    case Verdict.ASK:
                        self._ask(tasks)
        finally:
            self._status.stands_still(0.0)
            if self._asking is not None:
                self._asking.cancel()
        return None

    def _is_busy(self, seconds: float, standing: Standing, *, moved: bool) -> bool:
        """Looked at only when no work was seen for long: it asks the kernel about every process there is."""
        soon = standing.idle_seconds <= standing.limit_seconds * _LONG
        if moved or soon or self._engine.cpu_seconds is None:
            self._cpu = None
            return False
        before, self._cpu = self._cpu, self._engine.cpu_seconds()
        return before is not None and self._cpu - before > seconds / 2

    def _in_hand(self, load: EngineLoad) -> int:
        """Requests; what this watch asked for counts only when it is all there is."""
        asking = int(self._asking is not None and not self._asking.done())
        return max(self._status.in_flight.count, load.running + load.waiting - asking, asking)

    def _ask(self, tasks: asyncio.TaskGroup) -> None:
        if self._asking is None or self._asking.done():
            self._asking = tasks.create_task(_one_token(self._engine), name="one token")

    @asynccontextmanager
    async def _touched(self) -> AsyncIterator[asyncio.Event]:
        touched = asyncio.Event()
        forget = self._status.listen(touched.set)
        try:
            yield touched
        finally:
            forget()


def _counted(requests: int) -> str:
    return f"{requests} request{'s' * (requests != 1)}"


async def _one_token(engine: ServedEngine) -> None:
    """Token 0 is in every vocabulary. What the answer is does not matter, only that the engine works."""
    request = GenerateRequest("stall-watch", (0,), SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True))
    try:
        async with aclosing(engine.generate(request)) as deltas:
            async for _ in deltas:
                pass
    except Exception as error:  # whatever it is, the stall is judged by the work done
        log.warning("the engine answered a request for one token with an error: %r", error)
