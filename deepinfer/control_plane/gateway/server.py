"""The HTTP server, as a block: listening when it begins, and when it ends, running requests have had time to finish.

Signals are the process's business, not this server's. Limits on slow headers and bodies are not set here yet.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Generator
from contextlib import asynccontextmanager, contextmanager, suppress

import uvicorn

from deepinfer.control_plane.gateway.asgi import App
from deepinfer.fleet.errors import DeepinferError

BACKLOG = 2048
_DATE_SECONDS = 1.0


class CannotListen(DeepinferError):
    """The gateway cannot listen at its address."""


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
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

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


@asynccontextmanager
async def listening(app: App, host: str, port: int, grace_seconds: int = 10) -> AsyncIterator[int]:
    """The port that is bound (`port` 0 takes a free one). Raises `CannotListen`."""
    listener = bound(host, port)
    server = _Server(
        uvicorn.Config(
            app,
            loop="none",
            http="httptools",
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=grace_seconds,
        )
    )
    serving = asyncio.create_task(server.serve([listener]), name="http server")
    try:
        yield int(listener.getsockname()[1])
    finally:
        # Asked, not cancelled, also when the block was: running requests end in their own time.
        server.stop()
        await serving


def bound(host: str, port: int) -> socket.socket:
    """Bound and listening before the server runs, so that the port is known and no early client is refused."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        reason = error.strerror or str(error)
        raise CannotListen(f"Cannot listen on {host}:{port}: {reason}; take another with --port.") from error
    # asyncio sets it only on sockets made with an explicit protocol; without it every answer waits 40 ms for an ACK.
    # Accepted connections inherit it.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener
