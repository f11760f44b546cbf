"""What answers a call that comes to the sidecar: the container's server takes the calls itself."""

from __future__ import annotations

from typing import Final

import msgspec

from deepinfer.engine_shim.served_engine import AsgiApp, Receive, Scope, Send

_MISDIRECTED: Final = 421


def calls_go_to(endpoint: str) -> AsgiApp:
    """An application that says so, in OpenAI's shape of an error."""
    message = f"This engine takes no calls here; send them to http://{endpoint}, its http_endpoint in GetInfo."
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": "misdirected_request"}
    body = msgspec.json.encode({"error": error})
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": _MISDIRECTED, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return app
