"""The client's hang-up ends the work done for it, at once."""

from __future__ import annotations

import asyncio
from types import TracebackType

from deepinfer.control_plane.gateway.client_connection import ClientConnection


class WhileClientListens:
    """Cancels its block when the client hangs up, as `asyncio.timeout` does when time is up, and ends quietly.

    `hung_up` tells afterwards. The request's body must have been read.
    """

    def __init__(self, connection: ClientConnection) -> None:
        self.hung_up = False
        self._connection = connection

    def __enter__(self) -> WhileClientListens:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine runs in a task
        self._serving = task
        self._already_cancelling = task.cancelling()
        self._connection.when_gone = self._end
        if self._connection.is_gone:
            self._end()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self._connection.when_gone = None
        if not self.hung_up:
            return False
        ours = self._serving.uncancel() <= self._already_cancelling
        return ours and kind is asyncio.CancelledError

    def _end(self) -> None:
        self.hung_up = True
        self._serving.cancel()
