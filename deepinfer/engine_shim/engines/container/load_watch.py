"""Looks at the server's metrics: requests begin and end there without anybody telling the shim.

A look costs the API server a millisecond and this process as much. So there are two a second while something runs,
which is as often as load is told anyway, and one in two seconds while nothing does: what begins meanwhile is known
that much later here, though gateways count what they send themselves. New KV blocks tell of a request at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Final, NoReturn

from deepinfer.engine_shim.engines.container.api_server import ApiServer
from deepinfer.engine_shim.engines.container.figures import LOAD_NAMES, figures_of
from deepinfer.engine_shim.engines.container.load_meter import LoadMeter

_BUSY_SECONDS: Final = 0.5
_IDLE_SECONDS: Final = 2.0
_QUIET_LOOKS: Final = 2
"""A request that has just come is counted only from its first step on."""


class LoadWatch:
    """Fills `meter`. Whoever listens is called when the number of requests has changed."""

    def __init__(self, server: ApiServer, meter: LoadMeter) -> None:
        self.ended = asyncio.Event()  # set when requests have ended; whoever waits for it clears it
        self._server = server
        self._meter = meter
        self._woken = asyncio.Event()
        self._was_woken = False
        self._looking = asyncio.Lock()
        self._listeners: list[Callable[[], None]] = []

    def listen(self, listener: Callable[[], None]) -> None:
        self._listeners.append(listener)

    def tell(self) -> None:
        for listener in self._listeners:
            listener()

    def wake(self) -> None:
        """Something has begun."""
        self._woken.set()

    async def run(self) -> NoReturn:
        while True:
            await self._pause()
            await self.look()

    async def look(self) -> bool:
        """`False`: nothing could be seen."""
        async with self._looking:  # else an older answer could come last
            page = await self._server.metrics(LOAD_NAMES)
        figures = None if page is None else figures_of(page)
        if figures is None:
            self._meter.worked()
            return False
        before = self._meter.load
        if self._meter.saw(figures):
            self.ended.set()
        now = self._meter.load
        if (before.running, before.waiting) != (now.running, now.waiting):
            self.tell()
        return True

    async def idle(self) -> None:
        """Returns when no request runs or waits; at once where there are no metrics to tell."""
        quiet = 0
        while self._server.has_metrics:
            seen = await self.look()
            quiet = quiet + 1 if seen and not self._meter.in_hand else 0
            if quiet >= _QUIET_LOOKS:
                return
            await asyncio.sleep(_BUSY_SECONDS)

    async def _pause(self) -> None:
        if self._meter.in_hand or self._meter.moved or self._was_woken:
            self._was_woken = False
            await asyncio.sleep(_BUSY_SECONDS)  # KV blocks come with every step now
        else:
            with suppress(TimeoutError):
                async with asyncio.timeout(_IDLE_SECONDS):
                    await self._woken.wait()
            self._was_woken = self._woken.is_set()  # vLLM may count a request a little after it told of its blocks
        self._woken.clear()
