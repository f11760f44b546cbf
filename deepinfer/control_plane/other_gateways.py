"""The gateway processes beside the main one: started, asked whether they live, started again, ended together.

Each listens for itself on the one port (SO_REUSEPORT), and the kernel gives each new connection to one of them. So what
is killed loses its own connections only, with those that it had not accepted yet, and gets no more. What hangs keeps
getting its share, for the kernel does not know: that is why each is asked, and killed when it stays silent. Who watches
the main process watches all; the others drain when it is gone. macOS does not balance: there the newest gets all new
connections, and another takes over when it goes.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType

from deepinfer.control_plane.gateway.siblings import Siblings
from deepinfer.control_plane.gateway_process import Orders
from deepinfer.etcd.backoff import Backoff

log = logging.getLogger(__name__)

ASK_SECONDS = 2.0
ANSWER_SECONDS = 3.0
SILENCES = 3
"""In a row, after which it is killed: 15 s at most. Starting is no reason for silence, it answers before all else."""
GOOD_SECONDS = 30.0
"""After which a death is the first one again."""
SPARE_SECONDS = 15.0
"""For one that ends, beyond its drain."""


class OtherGateways:
    """Used as `async with`; the block's end waits for theirs."""

    def __init__(self, siblings: Siblings) -> None:
        self._siblings = siblings
        self._tasks = asyncio.TaskGroup()
        self._keeping: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> OtherGateways:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()
        await self._tasks.__aexit__(kind, error, trace)

    def start(self, main: Orders) -> None:
        """As many as the configuration wants besides the main one, whose orders these would be."""
        for number in range(1, main.config.serve.gateways):
            orders = main.model_copy(update={"number": number})
            self._keeping.append(self._tasks.create_task(self._keep(orders), name=f"gateway {number}"))

    def end(self) -> None:
        """All are told now, and drain side by side."""
        for keeping in self._keeping:
            keeping.cancel()
        self._keeping.clear()

    async def _keep(self, orders: Orders) -> None:
        backoff, now = Backoff(longest=10.0), asyncio.get_running_loop().time
        while True:
            began = now()
            async with _running(orders) as process, asyncio.TaskGroup() as tasks:
                asking = tasks.create_task(self._kill_if_silent(process, orders.number))
                status = await process.wait()
                asking.cancel()
            log.warning("gateway %d ended with status %d; starting it again", orders.number, status)
            if now() - began > GOOD_SECONDS:
                backoff.reset()
            await backoff.pause()

    async def _kill_if_silent(self, process: Process, number: int) -> None:
        silences = 0
        while silences < SILENCES:
            await asyncio.sleep(ASK_SECONDS)
            silences = 0 if await self._siblings.is_alive(number, ANSWER_SECONDS) else silences + 1
        log.error("gateway %d (process %d) does not answer; it is killed", number, process.pid)
        process.kill()


@asynccontextmanager
async def _running(orders: Orders) -> AsyncIterator[Process]:
    """Its log is ours. It drains when the block ends, and is killed when that takes too long."""
    command = [sys.executable, "-P", "-m", "deepinfer.control_plane.gateway_process"]
    # A session of its own: Ctrl-C in the terminal is for the main process, which tells the others.
    process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, start_new_session=True)
    try:
        assert process.stdin is not None  # noqa: S101 - it is a pipe
        # It stays open, and its end tells that of this process, once. A death signal of the kernel would come once for
        # each thread that dies, and a second signal means "at once".
        process.stdin.write(orders.to_json() + b"\n")
        yield process
    finally:
        await _ended(process, orders.config.serve.drain_seconds + SPARE_SECONDS)


async def _ended(process: Process, seconds: float) -> None:
    """Asked to, and made to when it is late."""
    try:
        if process.returncode is None:
            process.terminate()
        async with asyncio.timeout(seconds):
            await process.wait()
    except TimeoutError:
        log.error("process %d of a gateway does not end; it is killed", process.pid)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
