"""What the simulated nodes tell: who is registered, which changes they saw, how far their watches have come."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from deepinfer.fleet import keys


class Sightings:
    """Filled from the stdout of the processes that hold the nodes. Times are of the machine's monotonic clock.

    Every piece of news costs the same however many nodes there are: a pipe that is not emptied would stop the nodes.
    """

    def __init__(self) -> None:
        self.news = asyncio.Event()
        self.registered: set[str] = set()
        self.first_seen: dict[tuple[str, int], float] = {}  # by deployment and generation: at its first agent
        self.awaited: dict[str, int] = {}  # by node: a revision that its watch has not come to
        self.last_arrival = 0.0  # of what was awaited
        self._watched: dict[str, tuple[int, float]] = {}  # by node: how far its watch has come, and when

    async def follow(self, lines: asyncio.StreamReader) -> None:
        """Returns when the process ends."""
        async for line in lines:
            if line.startswith(b"{"):
                self._take(json.loads(line))
            elif line.rstrip().endswith(b": ready"):
                self.registered.add(line.decode().split()[2].rstrip(":"))
            self.news.set()

    def await_watches(self, revisions: Mapping[str, int]) -> None:
        """Note when the last of these nodes' watches has come to its revision."""
        self.awaited, self.last_arrival = dict(revisions), 0.0
        for node in revisions:
            self._arrive(node)

    def _take(self, news: dict[str, Any]) -> None:
        if "deployment" in news:
            self.first_seen.setdefault((news["deployment"], news["generation"]), news["at"])
        elif "watch" in news:
            node = news["watch"].removeprefix(keys.PLACEMENTS).rstrip("/")
            self._watched[node] = news["revision"], news["at"]
            self._arrive(node)

    def _arrive(self, node: str) -> None:
        revision, at = self._watched.get(node, (0, 0.0))
        if node in self.awaited and revision >= self.awaited[node]:
            del self.awaited[node]
            self.last_arrival = max(self.last_arrival, at)
