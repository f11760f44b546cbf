"""The HTTP server, as a block: listening when it begins, and when it ends, running requests have had time to finish.

Signals are the process's business, not this server's. Limits on slow headers and bodies are not set here yet.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Generator
from contextlib import asynccontextmanager, contextmanager

import uvicorn

from deepinfer.control_plane.gateway.asgi import App
from deepinfer.fleet.errors import DeepinferError

BACKLOG = 2048


class AddressInUse(DeepinferError):
    """The gateway cannot listen at its address."""


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


@asynccontextmanager
async def listening(app: App, host: str, port: int, grace_seconds: int = 10) -> AsyncIterator[int]:
    """The port that is bound (`port` 0 takes a free one). Raises `AddressInUse`."""
    listener = _bound(host, port)
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
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(server.serve([listener]), name="http server")
        try:
            yield int(listener.getsockname()[1])
        finally:
            server.should_exit = True


def _bound(host: str, port: int) -> socket.socket:
    """Bound and listening before the server runs, so that the port is known and no early client is refused."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        reason = error.strerror or str(error)
        raise AddressInUse(f"Cannot listen on {host}:{port}: {reason}; take another with --port.") from error
