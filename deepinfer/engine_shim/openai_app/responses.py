"""Whole JSON answers over ASGI."""

from __future__ import annotations

from typing import Any

import msgspec

from deepinfer.engine_shim.openai_app.errors import body_of, status_of
from deepinfer.engine_shim.served_engine import Send

Headers = tuple[tuple[bytes, bytes], ...]


async def send_json(send: Send, value: Any, status: int = 200) -> None:
    await send_body(send, status, msgspec.json.encode(value))


async def send_error(send: Send, error: Exception, headers: Headers = ()) -> None:
    await send_body(send, status_of(error), body_of(error), headers)


async def send_body(send: Send, status: int, body: bytes, headers: Headers = ()) -> None:
    given = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *headers]
    await send({"type": "http.response.start", "status": status, "headers": given})
    await send({"type": "http.response.body", "body": body})
