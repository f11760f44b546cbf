"""What all limited keys have used, as this gateway knows it. Pure but for the event that there is something to tell.

Every gateway charges its own requests at once and the others' when they tell of them, half a second later, all against
the same full limit. So a key gets its rate in the long run from any number of gateways, and in a moment no more than
they let in before they hear of each other, see `usage_sharing.py`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping

from deepinfer.control_plane.limits.bucket import WINDOW_SECONDS
from deepinfer.control_plane.limits.key_usage import Counts, KeyUsage
from deepinfer.fleet.api_key import KeyLimits

NOTHING: Mapping[str, Counts] = {}


class Ledger:
    """`changed` is set when other gateways should hear of something."""

    def __init__(self) -> None:
        self.changed = asyncio.Event()
        self._keys: dict[str, KeyUsage] = {}
        self._others: dict[str, Mapping[str, Counts]] = {}  # gateway -> key -> counts, as told last
        self._heard: dict[str, deque[tuple[float, Counts]]] = {}  # key -> what others used of it in the last minute

    def usage(self, key: str, limits: KeyLimits, now: float) -> KeyUsage:
        """Of a key that has limits."""
        found = self._keys.get(key)
        if found is None:
            found = self._keys[key] = KeyUsage(limits, now)
            for gateway, counts in self._others.items():
                found.runs_elsewhere(gateway, counts.get(key, Counts()).streams)
            for at, more in self._heard.pop(key, ()):
                if now - at < WINDOW_SECONDS:
                    found.charge(more.requests, more.tokens, now)
        else:
            found.change(limits, now)
        return found

    def here(self) -> dict[str, Counts]:
        """By key: what was used at this gateway."""
        return {key: usage.here for key, usage in self._keys.items()}

    def found(self, gateway: str, counts: Mapping[str, Counts], now: float) -> None:
        """Another gateway, which counted before this one listened: that is not charged."""
        self._others.setdefault(gateway, counts)
        self.told(gateway, counts, now)

    def told(self, gateway: str, counts: Mapping[str, Counts], now: float) -> None:
        """Another gateway's counts since it began."""
        before = self._others.get(gateway, NOTHING)
        self._others[gateway] = counts
        for key, all_of_it in counts.items():
            known = before.get(key, Counts())
            more = Counts(max(0, all_of_it.requests - known.requests), all_of_it.tokens - known.tokens)
            usage = self._keys.get(key)
            if usage is None:
                self._hear(key, more, now)
            else:
                usage.charge(more.requests, more.tokens, now)
                usage.runs_elsewhere(gateway, all_of_it.streams)

    def gone(self, gateway: str) -> None:
        """With all that ran there."""
        for key in self._others.pop(gateway, NOTHING):
            if key in self._keys:
                self._keys[key].runs_elsewhere(gateway, 0)

    def known_gateways(self) -> frozenset[str]:
        return frozenset(self._others)

    def _hear(self, key: str, more: Counts, now: float) -> None:
        if more.requests or more.tokens:
            heard = self._heard.setdefault(key, deque())
            heard.append((now, more))
            while now - heard[0][0] > WINDOW_SECONDS:
                heard.popleft()
