"""Where a shim takes calls: a loopback port of its own, which GetInfo tells, with the key that opens it."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from weakref import WeakSet

from deepinfer.engine_shim.call_connection import CallConnection
from deepinfer.engine_shim.listening import check_host
from deepinfer.engine_shim.openai_app.unavailable import unavailable
from deepinfer.engine_shim.served_engine import AsgiApp, Receive, Scope, Send
from deepinfer.engine_shim.status import ShimStatus
from deepinfer.engine_shim.wire import ShimPhase

KEY_BYTES = 16


@asynccontextmanager
async def taking_calls(status: ShimStatus, host: str) -> AsyncIterator[None]:
    """Until the block ends; what still runs then is cancelled. `EngineWillNotStart` for a host that is not loopback."""
    check_host(host)
    app, key = _engine_of(status), secrets.token_bytes(KEY_BYTES)
    connections: WeakSet[CallConnection] = WeakSet()

    def connected() -> CallConnection:
        connection = CallConnection(app, key)
        connections.add(connection)
        return connection

    def fail(reason: str) -> None:
        for connection in connections:
            connection.fail(reason)

    forget = status.when_failed(fail)
    server = await asyncio.get_running_loop().create_server(connected, host, 0)
    port = server.sockets[0].getsockname()[1]
    status.call_endpoint, status.call_key = f"[{host}]:{port}" if ":" in host else f"{host}:{port}", key
    try:
        yield
    finally:
        forget()
        server.close()
        await _close(list(connections))


async def _close(connections: list[CallConnection]) -> None:
    for connection in connections:
        connection.close()
    running = [task for connection in connections for task in connection.tasks]
    if running:
        await asyncio.wait(running)


def _engine_of(status: ShimStatus) -> AsgiApp:
    """The engine's application, while there is one to ask."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        answering = status.engine.app if status.engine and status.phase is ShimPhase.READY else unavailable(status)
        try:
            with status.in_flight.one():
                status.touch()
                await answering(scope, receive, send)
        finally:
            status.touch()

    return app
