"""The HTTP server, as a block: listening when it begins, and when it ends, running requests have had time to finish.

Signals are the process's business, not this server's. What one connection may cost is in limited_connection.py.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Generator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import partial
from typing import Any

import uvicorn

from deepinfer.control_plane.gateway.asgi import App
from deepinfer.control_plane.gateway.client_connection import ClientConnection
from deepinfer.control_plane.gateway.connections import Connections
from deepinfer.control_plane.gateway.drain import Drain
from deepinfer.control_plane.gateway.shortcut import Shortcut
from deepinfer.fleet.config import FrontLimits
from deepinfer.fleet.errors import DeepinferError

BACKLOG = 2048
UNSENT_BYTES = 128 << 10
"""Of one connection in the kernel, which would take some MiB for a client that reads slowly."""
FLUSH_SECONDS = 5
"""For slow clients to take the last bytes of answers that are made."""
_DATE_SECONDS = 1.0


class Sharing(Enum):
    """Who else may listen on the port: nobody, those who join once we have it, or we are one of these."""

    ALONE = auto()
    SHARES = auto()
    JOINS = auto()


@dataclass(frozen=True)
class Listening:
    """How a server is with its clients, with those who listen beside it, and at its end."""

    drain: Drain = field(default_factory=Drain)
    limits: FrontLimits = field(default_factory=FrontLimits)
    sharing: Sharing = Sharing.ALONE
    shortcut: Shortcut | None = None


class CannotListen(DeepinferError):
    """The gateway cannot listen at its address."""


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, drain: Drain) -> None:
        super().__init__(config)
        self._drain = drain
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        self.should_exit = True
        self._stopping.set()

    async def main_loop(self) -> None:
        """uvicorn's own wakes up ten times a second to see whether to end; only its Date header needs the time."""
        while not await self.on_tick(0):
            with suppress(TimeoutError):
                async with asyncio.timeout(_DATE_SECONDS):
                    await self._stopping.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for listener in self.servers:
            listener.close()
        await self._drain.through(self.server_state)
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


@asynccontextmanager
async def listening(app: App, host: str, port: int, how: Listening | None = None) -> AsyncIterator[int]:
    """The port that is bound (`port` 0 takes a free one). Raises `CannotListen`."""
    how = how or Listening()
    listener = bound(host, port, how.sharing)
    connections = Connections(how.limits)
    protocol: Any = partial(ClientConnection, connections, how.shortcut)  # uvicorn's types want a class
    server = _Server(
        uvicorn.Config(
            app,
            loop="none",
            http=protocol,
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=FLUSH_SECONDS,
        ),
        how.drain,
    )
    serving = asyncio.create_task(server.serve([listener]), name="http server")
    looking = asyncio.create_task(connections.keep_looking(), name="deadlines of connections")
    try:
        yield int(listener.getsockname()[1])
    finally:
        # Asked, not cancelled, also when the block was: running requests end in their own time.
        server.stop()
        await serving
        looking.cancel()
        await asyncio.wait([looking])


def bound(host: str, port: int, sharing: Sharing = Sharing.ALONE) -> socket.socket:
    """Bound and listening before the server runs, so that the port is known and no early client is refused."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        joins = sharing is Sharing.JOINS
        listener = socket.create_server((host, port), family=family, backlog=BACKLOG, reuse_port=joins)
    except OSError as error:
        reason = error.strerror or str(error)
        raise CannotListen(f"Cannot listen on {host}:{port}: {reason}; take another with --port.") from error
    if sharing is Sharing.SHARES:  # only now that it is ours: before, two `serve` could have shared it unawares
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    # asyncio sets it only on sockets made with an explicit protocol; without it every answer waits 40 ms for an ACK.
    # Accepted connections inherit it, and the other.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):  # not on every system
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
    return listener
