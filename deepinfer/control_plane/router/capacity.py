"""How much work an engine takes before requests wait in it instead of here, learned from what it tells. Pure.

Work is counted in tokens: of a request's prompt, and of its answer as far as it can be foreseen. An engine says when it
is ready how many requests it runs at once and how many tokens its KV cache holds, and then, twice a second, how many
requests run and wait. One in which requests go on waiting while no more of them run is full, unless it has seats and KV
blocks left (in a long step nothing changes): the work that runs then is its limit, and a tenth more is sent, so that it
never idles. While none wait, the limit is what it said of itself; where it said nothing, twice what runs. What came and
went from here since the last word is known exactly; what other gateways sent is seen in the next word.
"""

from __future__ import annotations

import math
from typing import Final

from deepinfer.engine_shim.token_engine import EngineLoad

AT_FIRST: Final = 256
"""Requests sent to an engine that does not say how many it runs at once: about what engines do on one card."""
MUTE_SECONDS: Final = 3.0
"""An engine that has requests for so long and never said that one runs does not tell its load: no limit is known."""
AHEAD: Final = 1.1
REQUESTS_AHEAD: Final = 2
_ROOMY: Final = 0.75
"""Share of the KV blocks in use up to which the longest usual request finds room."""


def waits_for_room(load: EngineLoad, seats: int, blocks: int) -> bool:
    """Whether requests wait there, and it may be for a seat or for KV blocks, of which it has so many; 0: not known."""
    has_room = seats and blocks and load.running < seats and load.kv_blocks_used < _ROOMY * blocks
    return load.waiting > 0 and not has_room


class Capacity:
    """Of one engine, as one gateway sees it."""

    def __init__(self) -> None:
        self._seats = 0  # requests it runs at once; 0: not known
        self._blocks = self._tokens = 0  # of its KV cache
        self._longest = math.inf  # tokens of a request
        self._load = EngineLoad()
        self._limit: float | None = None  # None: not known to be full
        self._mean = 1.0  # work of a request
        self._work = 0.0  # sent from here and not over
        self._requests = 0
        self._then = 0.0  # work that was there at the last word, in all, less what was from here
        self._speaks = False
        self._unanswered = 0.0  # since when it has had requests

    def knows(self, seats: int, blocks: int, block_size: int, longest: int) -> None:
        """What a ready engine says of itself; 0 for what it does not know."""
        self._seats, self._blocks, self._tokens = seats, blocks, blocks * block_size
        self._longest = longest or math.inf

    def at_most(self, work: float) -> float:
        """What a request can be there, whatever was foreseen of it."""
        return min(work, self._longest)

    def sent(self, work: float, now: float) -> None:
        if not self._requests:
            self._unanswered = now
        self._requests += 1
        self._work += work

    def over(self, work: float) -> None:
        self._requests -= 1
        self._work = self._work - work if self._requests else 0.0

    def told(self, load: EngineLoad) -> None:
        """The engine's newest word."""
        if self._requests:
            self._mean = self._work / self._requests
        before, self._load = self._load, load
        self._speaks = self._speaks or load.running > 0
        runs = load.running * self._mean
        if not waits_for_room(load, self._seats, self._blocks):
            self._limit = None
        elif before.waiting and load.running <= before.running:
            self._limit = runs
        elif self._limit is not None:
            self._limit = max(self._limit, runs)
        self._then = (load.running + load.waiting) * self._mean - self._work

    def has_room(self, work: float, now: float) -> bool:
        """Whether `work` more would run there soon."""
        work = min(work, self._longest)
        if not self._requests and not self._load.waiting:
            return True
        if not self._speaks and now - self._unanswered > MUTE_SECONDS:
            return True
        there = max(self._work, self._then + self._work)
        return there + work <= self._most(work) + REQUESTS_AHEAD * self._mean

    def _most(self, work: float) -> float:
        if self._limit is not None:
            return self._limit * AHEAD
        seats = self._seats or max(AT_FIRST, 2 * self._load.running)
        most = seats * max(self._mean, work)
        return min(most, self._tokens) if self._tokens else most
