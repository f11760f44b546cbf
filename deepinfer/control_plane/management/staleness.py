"""Answers given while the store is away say so: they are what was last known."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from datetime import datetime
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deepinfer.fleet.told_time import told_time

STALE_SINCE = "x-deepinfer-stale-since"


class StaleMark:
    """ASGI middleware: a header with the time since when the view is not kept up."""

    def __init__(self, app: ASGIApp, stale_since: Callable[[], datetime | None]) -> None:
        self._app = app
        self._stale_since = stale_since

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def marked(message: Message) -> None:
            since = self._stale_since() if message["type"] == "http.response.start" else None
            await send(_marked(message, since) if since else message)

        await self._app(scope, receive, marked)


def _marked(message: MutableMapping[str, Any], since: datetime) -> dict[str, Any]:
    time = told_time(since)
    return {**message, "headers": [*message.get("headers", []), (STALE_SINCE.encode(), time.encode())]}
