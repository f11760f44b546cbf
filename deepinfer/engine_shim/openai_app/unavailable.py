"""What is answered while there is no engine to ask: 503 in OpenAI's shape, with the reason and when to try again."""

from __future__ import annotations

from deepinfer.engine_shim.openai_app.responses import send_error
from deepinfer.engine_shim.served_engine import AsgiApp, Receive, Scope, Send
from deepinfer.engine_shim.status import ShimStatus
from deepinfer.fleet.errors import NoReadyReplica


def unavailable(status: ShimStatus) -> AsgiApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        reason = f"This engine is {status.phase}{': ' if status.message else ''}{status.message}; try again soon."
        await send_error(send, NoReadyReplica(reason), ((b"retry-after", b"1"),))

    return app
