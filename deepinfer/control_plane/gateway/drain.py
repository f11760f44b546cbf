"""How a gateway stops: nothing new is begun, what runs may end, and what still runs after that is told and cut off.

The listening socket closes first and at once, with one gateway as with many: whoever connects then is refused by the
kernel and goes elsewhere, or to the process that follows on the same port. Who is connected already is told, with a 503
and "Connection: close": to hang up could meet a request on its way, and its client would not know whether it was seen.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator

from uvicorn.server import ServerState

from deepinfer.control_plane.gateway.asgi import Reply
from deepinfer.control_plane.gateway.client_connection import ClientConnection
from deepinfer.control_plane.gateway.error_reply import error_reply
from deepinfer.control_plane.openai_errors import GatewayEnds

log = logging.getLogger(__name__)

TELLING_SECONDS = 2.0
"""For clients to be told that their answers are cut off; then for those that are still there to be hung up on."""


def nothing_to_cut(message: str) -> None:
    """Of a server whose requests end by themselves."""


class Drain:
    """`cut_off` makes every running answer fail with the message that it is given."""

    def __init__(self, seconds: float = 10.0, cut_off: Callable[[str], None] = nothing_to_cut) -> None:
        self.begun = False
        self._seconds = seconds
        self._cut_off = cut_off

    def refusal(self, path: str) -> Reply:
        """Of a request that came too late."""
        return error_reply(GatewayEnds(), ((b"connection", b"close"),), path)

    async def through(self, server: ServerState) -> None:
        """Returns when no request runs."""
        self.begun = True
        for connection in _busy(server):
            connection.shutdown()  # which closes it after its answer
        if await _idle(server, self._seconds):
            return
        log.warning("%d requests still run after %g seconds; they are cut off", len(server.tasks), self._seconds)
        self._cut_off(f"This gateway was told to end, and waited {self._seconds:g} s for this answer (drain_seconds).")
        if await _idle(server, TELLING_SECONDS):
            return
        for connection in _busy(server):
            connection.transport.abort()
        await _idle(server, TELLING_SECONDS)


async def _idle(server: ServerState, seconds: float) -> bool:
    """Whether all requests ended in time, those among them that came meanwhile."""
    try:
        async with asyncio.timeout(seconds):
            while server.tasks:
                await asyncio.wait(server.tasks)
    except TimeoutError:
        return False
    return True


def _busy(server: ServerState) -> Iterator[ClientConnection]:
    for connection in tuple(server.connections):
        if isinstance(connection, ClientConnection) and connection.is_busy:
            yield connection
