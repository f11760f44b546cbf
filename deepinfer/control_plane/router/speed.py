"""How fast one engine is, by its own timings and by what its answers really took. Pure: told what was seen, and when.

Seconds a token grow with the batch: a line is fitted through what the engine told of both, the newest counting most, so
that what one more request costs is known for a card that is busy and for one that is not.

First tokens tell what the engine's own means show late or never: short prefills what is fixed (a step, the network),
long ones how many times longer they take than its rate says. An engine that is avoided for that tells nothing new, so
what is known of it fades, and then one request finds out.
"""

from __future__ import annotations

from collections import deque
from statistics import median
from typing import Final

from deepinfer.engine_shim.token_engine import EngineLoad

PREFILL_RATE: Final = 2000.0
TOKEN_SECONDS: Final = 0.03
"""Of an engine that has not told its own, where no other of the model has either: about a small model on one card."""
_NEW: Final = 0.2
_NEWEST_FIRST: Final = 0.3
"""Weight of the newest first token: a few late ones are enough to go elsewhere."""
_SOONER: Final = 0.5
_LATER: Final = 0.005
_SPREAD: Final = 0.5
_SLOPE: Final = 1 / 64
"""Of the seconds a token: by so much one more request makes it longer, until batches of unlike sizes were seen."""
_LONG_SECONDS: Final = 0.05
"""Of a prefill, that tells how fast it is, and not what is fixed."""
_SLOWEST: Final = 30.0
_LATEST: Final = 5
"""Long prefills, of which the median tells: one that met something else is no news."""
_USUAL: Final = 2.0
"""Times longer, that are no news: prompts that are computed together wait for each other."""
_FADES_SECONDS: Final = 3.0
"""So long what was told is as good as new; after twice as long it is forgotten."""


class Speed:
    """Of one engine, as one gateway knows it. Rates are 0 until known."""

    def __init__(self) -> None:
        self.prefill_rate = 0.0  # tokens a second
        self.assumed_rate = PREFILL_RATE  # until it is known
        self.assumed_seconds = TOKEN_SECONDS  # of an output token, likewise
        self._batch = 0.0
        self._seconds = 0.0
        self._batch_spread = 0.0
        self._product = 0.0
        self._usual_rate = 0.0
        self._usual_seconds = 0.0
        self._told_at = 0.0
        self._last = EngineLoad()
        self._times = deque([1.0] * _LATEST, _LATEST)  # longer than its rate says, of long prefills
        self._longer = 1.0  # their median
        self._fixed = 0.0  # seconds of first tokens besides
        self._began_at = 0.0

    def told(self, load: EngineLoad, now: float) -> None:
        """The engine's newest word."""
        rate, seconds, ran = load.prefill_tokens_per_second, load.seconds_per_output_token, self._last.running
        same = (rate, seconds) == (self._last.prefill_tokens_per_second, self._last.seconds_per_output_token)
        self._last = load
        if same and not (ran and load.running):
            return  # it has computed nothing since
        weight = max(_NEW, 1.0 - _left(now - self._told_at))
        self._told_at = now
        if rate > 0:
            self.prefill_rate = rate
            self._usual_rate = 1 / _usual(1 / (self._usual_rate or rate), 1 / rate)
        if seconds > 0:
            self._usual_seconds = _usual(self._usual_seconds or seconds, seconds)
            self._fit(load.running or ran or 1, seconds, weight)

    def _fit(self, batch: int, seconds: float, weight: float) -> None:
        if not self._seconds:
            self._batch, self._seconds = float(batch), seconds
            return
        batch_off, seconds_off = batch - self._batch, seconds - self._seconds
        self._batch += weight * batch_off
        self._seconds += weight * seconds_off
        self._batch_spread += weight * (batch_off * batch_off - self._batch_spread)
        self._product += weight * (batch_off * seconds_off - self._product)

    def assume(self, rate: float, seconds: float) -> None:
        """What others of its kind do, until it has told its own; 0: nobody has."""
        self.assumed_rate, self.assumed_seconds = rate or PREFILL_RATE, seconds or TOKEN_SECONDS

    @property
    def known(self) -> tuple[float, float]:
        """Tokens a second of prefill, and seconds an output token, by its own timings; 0: not told yet."""
        return self.prefill_rate, self._seconds

    def rate(self, now: float) -> float:
        """Tokens a second of prefill, as far as known."""
        if not self.prefill_rate:
            return self.assumed_rate
        return self._usual_rate + (self.prefill_rate - self._usual_rate) * _left(now - self._told_at)

    def token_seconds(self, batch: int, now: float) -> float:
        """Of one output token, where `batch` requests run."""
        seconds = self.assumed_seconds
        if self._seconds:
            seconds = self._usual_seconds + (self._seconds - self._usual_seconds) * _left(now - self._told_at)
        return max(seconds / 4, seconds + self.token_slope * (batch - self._batch))

    @property
    def token_slope(self) -> float:
        """Seconds by which one more request makes everybody's token longer."""
        seconds = self._seconds or self.assumed_seconds
        if self._batch_spread < _SPREAD:
            return _SLOPE * seconds
        steepest = seconds / max(1.0, self._batch)  # of an engine that has no fixed cost a step
        return min(max(_SLOPE / 2 * seconds, self._product / self._batch_spread), steepest)

    def slowness(self, now: float) -> float:
        """How many times longer than usual a prefill takes; 1.0 if that is about right."""
        return max(1.0, (1.0 + (self._longer - 1.0) * _left(now - self._began_at)) / _USUAL)

    def fixed_seconds(self, now: float) -> float:
        """Until a first token, besides what is computed for it."""
        return self._fixed * _left(now - self._began_at)

    def began(self, expected: float, took: float, now: float) -> None:
        """A first token came after so many seconds."""
        left = _left(now - self._began_at)
        weight = max(_NEWEST_FIRST, 1.0 - left)
        self._fixed *= left
        self._began_at = now
        if expected < _LONG_SECONDS:
            self._fixed += weight * (max(0.0, took - expected) - self._fixed)
        else:
            if not left:
                self._times.extend([1.0] * _LATEST)
            self._times.append(min(_SLOWEST, max(0.0, took - self._fixed) / expected))
            self._longer = median(self._times)


def _left(seconds: float) -> float:
    """Of what was told so long ago."""
    return min(1.0, max(0.0, 2.0 - seconds / _FADES_SECONDS))


def _usual(usual: float, seconds: float) -> float:
    """Slowly forgotten, and sooner what was slower: what an engine once could is what it should."""
    return usual + (_SOONER if seconds < usual else _LATER) * (seconds - usual)
