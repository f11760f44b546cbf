"""The client's hang-up ends the work done for it, at once."""

from __future__ import annotations

import asyncio
from types import TracebackType

from deepinfer.control_plane.gateway.asgi import Receive


class WhileClientListens:
    """Cancels its block when the client hangs up, as `asyncio.timeout` does when time is up, and ends quietly.

    `hung_up` tells afterwards. The request's body must have been read.
    """

    def __init__(self, receive: Receive) -> None:
        self.hung_up = False
        self._receive = receive

    async def __aenter__(self) -> WhileClientListens:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine runs in a task
        self._serving = task
        self._already_cancelling = task.cancelling()
        self._listening = asyncio.create_task(self._wait_for_hang_up())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self._listening.cancel()  # not awaited: it has nothing to clean up, and this is the data path
        del self._listening  # whose end refers to this: a cycle, which the garbage collector would have to find
        if not self.hung_up:
            return False
        ours = self._serving.uncancel() <= self._already_cancelling
        return ours and kind is asyncio.CancelledError

    async def _wait_for_hang_up(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.hung_up = True
        self._serving.cancel()
