"""Whether the way to an engine is open, told by the kernels at both ends: an idle connection that carries nothing.

A machine that is switched off or cut off says no word, and what waits for one waits long. Here each kernel asks the
other every second, at no cost to either process. An engine that is merely busy, or stopped, keeps its lifeline: that
it hangs is seen elsewhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final, cast

from deepinfer.engine_shim.connecting import connect
from deepinfer.engine_shim.dead_peers import ask_peer
from deepinfer.fleet.errors import EngineFailed

_ASKED: Final = {"TCP_KEEPIDLE": 1, "TCP_KEEPINTVL": 1, "TCP_KEEPCNT": 2}
"""Lost 3 s after the last sign of life."""
_AGAIN_SECONDS: Final = 0.5


@asynccontextmanager
async def lifeline(endpoint: str, tell: Callable[[bool], None]) -> AsyncIterator[None]:
    """While the block runs, `tell` hears False when the way to `endpoint` is lost, and True when it is open again.

    An engine that ends is none of this: its end is a word.
    """
    keeping = asyncio.create_task(_keep(endpoint, tell), name=f"lifeline to {endpoint}")
    try:
        yield
    finally:
        keeping.cancel()
        await asyncio.wait({keeping})


async def _keep(endpoint: str, tell: Callable[[bool], None]) -> None:
    while True:
        try:
            line = await connect(_Line, endpoint, endpoint)
        except EngineFailed:
            pass  # as lost as it was; or the engine has ended
        else:
            tell(True)
            try:
                await line.ended.wait()
            finally:
                line.close()
            if line.was_cut:
                tell(False)
        await asyncio.sleep(_AGAIN_SECONDS)


class _Line(asyncio.Protocol):
    def __init__(self) -> None:
        self.ended = asyncio.Event()
        self.was_cut = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # of a stream; uvloop's are of no class of asyncio's
        ask_peer(transport, _ASKED)

    def connection_lost(self, exc: Exception | None) -> None:
        # A peer that closes or resets it is there; what is left is a time-out, or a router that knows no way.
        self.was_cut = isinstance(exc, OSError) and not isinstance(exc, ConnectionError)
        self.ended.set()

    def close(self) -> None:
        self._transport.abort()
