"""What can be foreseen of requests at one engine, and what has come of it.

Everything is learned from the engine's own words (`told`) and from this gateway's requests there: how they went, when
their first tokens came, and what their answers told.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from deepinfer.control_plane.router.candidate import RoutedRequest
from deepinfer.control_plane.router.capacity import waits_for_room
from deepinfer.control_plane.router.claims import Claims
from deepinfer.control_plane.router.cost import Prospect
from deepinfer.control_plane.router.forecast import Forecast
from deepinfer.control_plane.router.foresight import Foresight
from deepinfer.control_plane.router.found import Found
from deepinfer.control_plane.router.kv_index import KvShelf
from deepinfer.control_plane.router.prefill_book import PrefillBook
from deepinfer.control_plane.router.prefill_share import PrefillShare
from deepinfer.control_plane.router.silence import Silence
from deepinfer.control_plane.router.speed import Speed
from deepinfer.control_plane.router.trust import Trust
from deepinfer.control_plane.router.warm_texts import LIKELY, WarmTexts
from deepinfer.engine_shim.token_engine import EngineLoad
from deepinfer.engine_shim.wire import ShimInfo

CLAIM_CREDIT: Final = 0.9
"""Of a token about to be filled, against one that is there: its request may be cancelled, or wait."""


class Outlook:
    """Of one engine, by one gateway."""

    def __init__(self, placement: str, shelf: KvShelf) -> None:
        self.placement = placement
        self.shelf = shelf
        self.block_size = 0  # tokens; 0: not known yet
        self.speed = Speed()
        self.trust = Trust()
        self.claims = Claims()
        self.warm = WarmTexts()
        self.load = EngineLoad()  # by the engine's last word
        self.in_flight = 0
        self.foresight = Foresight()
        self._book = PrefillBook()
        self._prefills = PrefillShare()
        self._silence = Silence()
        self._kv_blocks = self._seats = 0
        self._in_flight_then = 0
        self._stalled_seconds = 0.0  # by its last word, until a first token comes

    def knows(self, info: ShimInfo) -> None:
        """What a ready engine says of itself."""
        self.block_size, self._kv_blocks, self._seats = info.kv_block_size, info.kv_blocks, info.max_running
        self.shelf.describe(self.shelf.groups, self.block_size)
        self.warm.knows(info.kv_blocks * info.kv_block_size)

    def told(self, load: EngineLoad, now: float) -> None:
        """The engine's newest word."""
        self.load = load
        self._stalled_seconds = load.stalled_seconds
        self.speed.told(load, now)
        if self.in_flight or load.running or load.waiting:
            self.claims.heard()
        else:
            self.claims.clear()  # all is told, and if it stays idle, nothing more will be
        shared = load.running + load.waiting > self.in_flight  # else all of it is from here, and better known
        self._book.told(load.waiting_prefill_tokens if shared else 0, self.speed.rate(now), now)
        self._in_flight_then = self.in_flight
        self._silence.told(load, now, tells=self.shelf.blocks > 0)

    def lost(self, why: str) -> None:
        """Nobody knows what it does, nor what it holds."""
        self.trust.missing = why
        self.claims.clear()
        self.warm.clear()
        self._book.clear()
        self.load = EngineLoad()
        self._stalled_seconds = 0.0

    def went(self, forecast: Forecast) -> None:
        """A request goes there."""
        self._silence.asked(forecast.sent_at, busy=self.in_flight > 0)
        self.in_flight += 1
        self._book.sent(forecast)
        self._prefills.sent(forecast.uncached_tokens / self.speed.rate(forecast.sent_at), forecast.sent_at)
        self.claims.claim(forecast.names)

    def began(self, forecast: Forecast, now: float) -> None:
        """Its first bytes came."""
        if forecast.is_over:
            return
        self._book.computed(forecast, now)
        self._silence.answered(forecast.sent_at, now)
        self._stalled_seconds = 0.0
        if forecast.streams and forecast.first_seconds:
            took = now - forecast.sent_at
            self.foresight.first_token(forecast.foreseen_seconds, took)
            self.speed.began(forecast.first_seconds, took, now)

    def over(self, forecast: Forecast, now: float) -> None:
        """Whatever became of it."""
        self.in_flight -= 1
        if forecast.is_over:
            self.claims.end(forecast.names)
        else:
            self._book.computed(forecast, now)
            self._silence.cancelled(forecast.sent_at)
            self.claims.drop(forecast.names)  # it will fill nothing any more

    def compared(self, forecast: Forecast, prompt_tokens: int, cached_tokens: int, now: float) -> bool:
        """What its answer told; -1: not that. Whether what was foreseen turned out wrong just now."""
        wrong = forecast.is_exact and self.trust.counted(forecast.prompt_tokens, prompt_tokens, now)
        if forecast.from_index and cached_tokens >= 0:
            self.foresight.cached(forecast.cached_tokens, cached_tokens)
            wrong |= self.trust.compared(forecast.cached_tokens, cached_tokens, prompt_tokens, now)
        self.foresight.index_errors += wrong
        return wrong

    @property
    def there(self) -> int:
        """Requests, from wherever: by the engine's last word, and what came and went from here since."""
        told = self.load.running + self.load.waiting
        return max(self.in_flight, told + self.in_flight - self._in_flight_then)

    def queue_seconds(self, now: float) -> float:
        """Of prefill that comes before a new prompt."""
        return self._book.seconds(self.speed.rate(now), now)[0]

    def doubt(self, now: float) -> str:
        """Why what it holds is not known; "" if it is."""
        return self.trust.why_not(now) if self.block_size else "its engine does not say how large its KV blocks are"

    def prospect(self, request: RoutedRequest, found: Found, now: float) -> Prospect:
        """What the request would find, `found` being what lies there of its prompt."""
        tokens = min(found.expected, max(0.0, request.prompt_tokens - 1.0))
        uncached = max(1.0, request.prompt_tokens - tokens)
        rate, running = self.speed.rate(now), self.there
        queue, overdue, own = self._book.seconds(rate, now)
        still = self._stalled_seconds - 2 * own
        free = (self._kv_blocks - self.shelf.blocks) * self.block_size
        return Prospect(
            placement=self.placement,
            cached_tokens=tokens,
            uncached_tokens=uncached,
            prefill_rate=rate,
            token_seconds=self.speed.token_seconds(running + 1, now),
            token_slope=self.speed.token_slope,
            prefill_share=self._prefills.at(now),
            queue_seconds=queue,
            overdue_seconds=max(overdue, still, self._silent_seconds(rate, now)),
            running=running,
            waiting=self.load.waiting if waits_for_room(self.load, self._seats, self._kv_blocks) else 0,
            unbegun=0 if overdue > 0.0 else max(len(self._book), self.load.waiting),
            slowness=self.speed.slowness(now),
            fixed_seconds=self.speed.fixed_seconds(now),
            evicted_tokens=max(0.0, uncached + request.answer_tokens - max(0, free)) if found.is_exact else 0.0,
            known_by=found.known_by,
            doubt=found.doubt,
        )

    def _silent_seconds(self, rate: float, now: float) -> float:
        """For how long it should have said something."""
        if not self.in_flight or self._silence.is_brief(now):
            return 0.0
        return self._silence.seconds(self.block_size * self.speed.token_seconds(self.there, now), rate, now)

    def guessed(self, request: RoutedRequest, chain: Sequence[int], session_tokens: int) -> float:
        """Tokens of the prompt that probably lie there, by what texts came."""
        share = self.warm.share(chain)
        return LIKELY * max(share * request.prompt_tokens, float(min(session_tokens, request.prompt_tokens)))
