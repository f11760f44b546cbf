"""What lies in etcd, followed by a watch of the measuring process's own."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import aclosing

from deepinfer.etcd.client import Client
from deepinfer.fleet import keys
from deepinfer.fleet.resources import Phase


class Ledger:
    """Placements, the replicas that are ready, and every write since the watch was set up."""

    def __init__(self, endpoint: str) -> None:
        self.news = asyncio.Event()
        self.watching = asyncio.Event()
        self.placements: set[str] = set()
        self.ready: set[str] = set()
        self.writes: list[tuple[bytes, bytes]] = []  # in order, deletions left out
        self.last_write = time.monotonic()
        self._endpoint = endpoint

    async def follow(self) -> None:
        """Never returns."""
        async with Client([self._endpoint]) as client, aclosing(client.watch(keys.FLEET.encode())) as batches:
            async for batch in batches:
                self.watching.set()
                for change in batch.changes:
                    self._take(change.key.decode(), change.value)
                if batch.changes:
                    self.last_write = time.monotonic()
                self.news.set()

    def _take(self, key: str, value: bytes | None) -> None:
        if value is not None:
            self.writes.append((key.encode(), value))
        if key.startswith(keys.PLACEMENTS):
            _include(self.placements, key.removeprefix(keys.PLACEMENTS), value is not None)
        elif key.startswith(keys.STATUSES):
            is_ready = value is not None and json.loads(value)["phase"] == Phase.READY
            _include(self.ready, key.removeprefix(keys.STATUSES), is_ready)

    def quiet_seconds(self) -> float:
        return time.monotonic() - self.last_write


def _include(members: set[str], name: str, is_member: bool) -> None:
    (members.add if is_member else members.discard)(name)
