"""What an engine still has to prefill, and since when it should have. Pure: told what happens, and when.

This gateway's own requests are known exactly: how much of each one's prompt is to be computed, and when its first token
came. What other gateways sent is in the engine's own word, less what was from here at that time; it is a level and not
a sum of changes, so a lost message leaves nothing behind.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from deepinfer.control_plane.router.forecast import Forecast

_PATIENCE_SECONDS: Final = 0.1
"""After which a first token is late, besides half of the time it was to take."""


class PrefillBook:
    """Of one engine, kept by one gateway."""

    __slots__ = ("_since", "_told", "_told_at", "_under_way")

    def __init__(self) -> None:
        self._under_way: deque[Forecast] = deque()  # in the order they went, so about in that of their first tokens
        self._since = 0.0  # when the first of them became the first
        self._told = 0.0  # tokens of others, by the engine's last word
        self._told_at = 0.0

    def __len__(self) -> int:
        """Requests from here whose first token is not there, about."""
        return len(self._under_way)

    def sent(self, forecast: Forecast) -> None:
        if not self._under_way:
            self._since = forecast.sent_at
        self._under_way.append(forecast)

    def computed(self, forecast: Forecast, now: float) -> None:
        """Its first token is there, or will never be. Those before it are done too, if that can be seen of them."""
        under_way = self._under_way
        forecast.is_over = True
        while under_way and (under_way[0].is_over or (not under_way[0].streams and forecast.streams)):
            under_way.popleft()
            self._since = now

    def told(self, prompt_tokens: int, rate: float, now: float) -> None:
        """The engine's newest word: tokens of prompts that have no first token yet, whoever sent them."""
        self._pass_time(rate, now)
        own = sum(forecast.prompt_tokens for forecast in self._under_way if not forecast.is_over)
        self._told, self._told_at = max(0.0, prompt_tokens - own), now

    def seconds(self, rate: float, now: float) -> tuple[float, float, float]:
        """Until all of it is computed at `rate` tokens a second; for how long what comes first has been late; and how
        long all from here takes: for so long an engine may show no work at all."""
        self._pass_time(rate, now)
        under_way = self._under_way
        others = max(0.0, self._told / rate - (now - self._told_at)) if self._told else 0.0
        if not under_way:
            return others, 0.0, 0.0
        elapsed = now - self._since
        head = under_way[0].uncached_tokens / rate
        late = elapsed - 1.5 * head - others - _PATIENCE_SECONDS if under_way[0].streams else 0.0
        own = sum([forecast.uncached_tokens for forecast in under_way if not forecast.is_over]) / rate
        return others + own - min(head, elapsed), max(0.0, late), own

    def clear(self) -> None:
        """The engine was lost."""
        self._under_way.clear()
        self._told = 0.0

    def _pass_time(self, rate: float, now: float) -> None:
        """Nothing tells when the prefill of a whole answer is over: by then it should be."""
        under_way = self._under_way
        while under_way and (under_way[0].is_over or not under_way[0].streams):
            head = 0.0 if under_way[0].is_over else under_way[0].uncached_tokens / rate
            if now - self._since < head:
                return
            self._since += head
            under_way.popleft()
