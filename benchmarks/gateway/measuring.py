"""One gateway in one round: what it does with three loads, and what that costs it.

A whole answer's cost is the gateway's CPU time by the answers; that of a chunk is what a stream costs more than a whole
answer, by its further chunks. Under full load chunks come together, and pass together; one of the paced streams comes
alone, and its cost is all of the gateway's time by all events.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.gateway.chat import chat
from benchmarks.gateway.engines import CHUNKS, MODEL, Engines
from benchmarks.gateway.load import Load, Seen
from benchmarks.gateway.running import CannotRun, Gateway

CONNECTIONS = 32
PACED_CONNECTIONS = 64
PACE_MS = 10
_WARM_SECONDS = 0.3
_WHOLE_TOKENS = 8


@dataclass(frozen=True)
class Cost:
    """What was seen, and the gateway's CPU meanwhile; 0 where there is none."""

    seen: Seen
    cpu_seconds: float

    @property
    def per_request(self) -> float:
        return 1e6 * self.cpu_seconds / max(1, self.seen.requests)

    @property
    def per_event(self) -> float:
        return 1e6 * self.cpu_seconds / max(1, self.seen.events)


@dataclass(frozen=True)
class Measured:
    """Of one round."""

    first_byte_seconds: float  # of a stream, alone
    whole: Cost
    streams: Cost
    paced: Cost | None

    @property
    def cpu_request(self) -> float:
        """Microseconds."""
        return self.whole.per_request

    @property
    def cpu_chunk(self) -> float:
        """Microseconds."""
        further = self.streams.seen.whole_events / max(1, self.streams.seen.requests) - 1
        return (self.streams.per_request - self.whole.per_request) / max(1.0, further)

    @property
    def failed(self) -> int:
        costs = (self.whole, self.streams, *((self.paced,) if self.paced else ()))
        return sum(cost.seen.failed for cost in costs)


@dataclass(frozen=True)
class Bench:
    """What every measuring needs."""

    load: Load
    engines: Engines
    seconds: float  # of each load
    turns: int  # of the chat, before the one that is asked

    def measured(self, gateway: Gateway) -> Measured:
        """Raises `CannotRun` for one that does not answer."""
        whole = chat(MODEL, gateway.token, stream=False, tokens=_WHOLE_TOKENS, turns=self.turns)
        stream = chat(MODEL, gateway.token, stream=True, tokens=CHUNKS, turns=self.turns)
        for request in (whole, stream):
            self.load.asks(gateway.port, request, CONNECTIONS, _WARM_SECONDS)
        first = self.load.asks(gateway.port, stream, 1, self.seconds / 2)
        found = Measured(
            first.first_p50,
            self._cost(gateway, whole, CONNECTIONS),
            self._cost(gateway, stream, CONNECTIONS),
            None if gateway.has_own_engines else self._paced(gateway, stream),
        )
        if not (found.whole.seen.requests and found.streams.seen.requests and first.answering):
            raise CannotRun(f"{gateway.name} answered nothing ({first}, {found}); {_words(gateway)}")
        return found

    def _paced(self, gateway: Gateway, request: bytes) -> Cost:
        self.engines.answer(pace_ms=PACE_MS)
        try:
            return self._cost(gateway, request, PACED_CONNECTIONS)
        finally:
            self.engines.answer()

    def _cost(self, gateway: Gateway, request: bytes, connections: int) -> Cost:
        tree = gateway.processes
        before = tree.cpu_seconds() if tree else 0.0
        seen = self.load.asks(gateway.port, request, connections, self.seconds)
        return Cost(seen, (tree.cpu_seconds() if tree else 0.0) - before)


def _words(gateway: Gateway) -> str:
    return f"its log ends with: {gateway.processes.last_words()}" if gateway.processes else "these are the engines"
