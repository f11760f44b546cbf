"""The management API for a process that may never be asked for it: imported with the first request, beside the loop.

That is a third of what the start of a gateway process costs, and such a process may have to follow one that died.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from deepinfer.control_plane.gateway.asgi import App, Receive, Scope, Send
from deepinfer.fleet.mirror import Mirror


class OnDemand:
    """Made of what `management_app` takes."""

    def __init__(
        self, mirror: Callable[[], Mirror], answering: Callable[[], frozenset[tuple[str, int]] | None]
    ) -> None:
        self._mirror = mirror
        self._answering = answering
        self._app: App | None = None
        self._making = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        async with self._making:
            if self._app is None:
                self._app = await asyncio.to_thread(self._made)
        await self._app(scope, receive, send)

    def _made(self) -> App:
        from deepinfer.control_plane.management.app import management_app

        return management_app(self._mirror, self._answering)
