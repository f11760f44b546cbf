"""Writes of many connections that leave together, at the end of a turn of the event loop.

To send wakes who waits at the other end, which costs more than all else about it. Whoever gets several things at once
is woken once for all.
"""

from __future__ import annotations

import asyncio


class Cork:
    """Of one event loop. `flush` before a write past it, or an end, of a connection that may have something here."""

    def __init__(self) -> None:
        self._held: list[tuple[asyncio.WriteTransport, bytes]] = []
        self._call_soon = asyncio.get_running_loop().call_soon

    def write(self, transport: asyncio.WriteTransport, data: bytes) -> None:
        if not self._held:
            self._call_soon(self.flush)
        self._held.append((transport, data))

    def flush(self) -> None:
        """Now."""
        held, self._held = self._held, []
        for transport, data in held:
            if not transport.is_closing():
                transport.write(data)
