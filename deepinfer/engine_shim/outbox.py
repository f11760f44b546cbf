"""Frames that leave together: all that is put in during one turn of the event loop goes out in one write."""

from __future__ import annotations

import asyncio


class Outbox:
    """Of one connection."""

    def __init__(self, transport: asyncio.WriteTransport) -> None:
        self._transport = transport
        self._parts: list[bytes] = []
        self._call_soon = asyncio.get_running_loop().call_soon

    def put(self, *parts: bytes) -> None:
        """Nobody waits here: what may be put in is bounded by the windows of those who put."""
        if not self._parts:
            # Tasks that are ready now run before it, so what one step of an engine made for all of them is one write.
            self._call_soon(self._send)
        self._parts += parts

    def _send(self) -> None:
        parts, self._parts = self._parts, []
        if not self._transport.is_closing():
            self._transport.write(b"".join(parts))
