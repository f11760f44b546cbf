"""vLLM's HTTP surface over the simulated engine: the OpenAI application, and what operators and their tools ask."""

from __future__ import annotations

import asyncio
from hmac import compare_digest

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry

from deepinfer.engine_shim.engines.sim_server.metrics import metrics_page
from deepinfer.engine_shim.openai_app.responses import send_body, send_error, send_json
from deepinfer.engine_shim.served_engine import AsgiApp, Message, Receive, Scope, Send
from deepinfer.fleet.errors import EngineFailed

VERSION = "0.0.0+sim.1"  # no version of vLLM's


class SimServer:
    """An ASGI application. Once `broken` says why, /health is 503 and calls fail, as when vLLM's core has died."""

    def __init__(self, openai: AsgiApp, metrics: CollectorRegistry, api_key: str = "") -> None:
        self.broken = ""
        self._credentials = f"Bearer {api_key}".encode() if api_key else b""
        self._openai = openai
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        match scope["path"]:
            case "/health" | "/ping":
                await send_body(send, 503 if self.broken else 200, b"")
            case "/version":
                await send_json(send, {"version": VERSION})
            case "/metrics":
                headers = ((b"content-type", CONTENT_TYPE_LATEST.encode()),)
                await send_body(send, 200, metrics_page(self._metrics), headers)
            case path if self._credentials and path.startswith("/v1") and not self._may(scope):
                await send_json(send, {"error": "Unauthorized"}, status=401)
            case _ if self.broken:
                await send_error(send, EngineFailed(f"The engine failed: {self.broken}."))
            case _:
                await _while_somebody_listens(self._openai, scope, receive, send)

    def _may(self, scope: Scope) -> bool:
        return compare_digest(dict(scope["headers"]).get(b"authorization", b""), self._credentials)


async def _while_somebody_listens(app: AsgiApp, scope: Scope, receive: Receive, send: Send) -> None:
    """A client that hangs up ends its request in the engine: the OpenAI application counts on being cancelled then."""
    body = asyncio.Queue[Message]()
    async with asyncio.TaskGroup() as tasks:
        answering: asyncio.Task[None] = tasks.create_task(app(scope, body.get, send))  # type: ignore[arg-type]
        while not answering.done():
            message = await receive()
            if message["type"] == "http.disconnect":  # which also comes after a whole answer
                answering.cancel()
                return
            body.put_nowait(message)
