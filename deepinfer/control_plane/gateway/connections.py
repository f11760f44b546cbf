"""All connections of clients: how many there may be, and one look at each of them every second.

Deadlines are kept by that look, so a request costs no timer.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections import Counter
from typing import Protocol

from deepinfer.control_plane.openai_errors import TooManyConnections
from deepinfer.engine_shim.cork import Cork
from deepinfer.fleet.config import FrontLimits

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
PER_CLIENT = 1_000
"""From elsewhere, unless the configuration says how many."""


class Connection(Protocol):
    """One of a client; hashed by identity."""

    def look(self, now: float) -> None:
        """End what takes too long."""
        ...


class Connections:
    """Counts those that were let in, and keeps looking at all."""

    def __init__(self, limits: FrontLimits) -> None:
        self.limits = limits
        self.cork = Cork()
        self._all: dict[Connection, str | None] = {}  # the client as it is counted, or None: it was not let in
        self._of: Counter[str] = Counter()
        self._let_in = 0

    def enter(self, connection: Connection, address: str) -> TooManyConnections | None:
        """Why it must go again."""
        client = counted_as(address)
        refusal = self._refusal(client)
        self._all[connection] = None if refusal else client
        if refusal is None:
            self._let_in += 1
            self._of[client] += 1
        return refusal

    def leave(self, connection: Connection) -> None:
        client = self._all.pop(connection, None)
        if client is None:
            return
        self._let_in -= 1
        self._of[client] -= 1
        if not self._of[client]:
            del self._of[client]

    @property
    def refused(self) -> int:
        """Still there, to read why."""
        return len(self._all) - self._let_in

    async def keep_looking(self) -> None:
        """Never returns."""
        limits, loop = self.limits, asyncio.get_running_loop()
        shortest = min(limits.header_seconds, limits.body_seconds, limits.write_seconds)
        while True:
            await asyncio.sleep(min(LOOK_SECONDS, shortest / 4))
            now = loop.time()
            for connection in tuple(self._all):
                try:
                    connection.look(now)
                except Exception:  # the others' deadlines must not end with it
                    log.exception("a client's connection could not be looked at")

    def _refusal(self, client: str) -> TooManyConnections | None:
        limits = self.limits
        if self._let_in >= limits.max_connections:
            return TooManyConnections(f"{self._let_in} clients are connected, and no more may be; come again soon.")
        own = limits.max_connections_per_client
        if own is None:
            own = limits.max_connections if client == "loopback" else PER_CLIENT
        if self._of[client] >= own:
            return TooManyConnections(f"{client} has {own} connections, and may have no more; close some of them.")
        return None


def counted_as(address: str) -> str:
    """Who has an IPv6 address has all that begin as it does."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if ip.version == 6 and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    if ip.is_loopback:
        return "loopback"
    return str(ip) if ip.version == 4 else str(ipaddress.ip_network((ip, 64), strict=False))
