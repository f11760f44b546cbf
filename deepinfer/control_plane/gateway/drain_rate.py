"""How fast a model's engines work off what waits for them, in tokens of work a second. Pure: time is given."""

from __future__ import annotations

from collections import deque
from typing import Final

WINDOW_SECONDS: Final = 10.0
ENOUGH_SECONDS: Final = 2.0
_NEW: Final = 0.1


class DrainRate:
    """Counted while requests wait, for only then do engines work as fast as they can. Before that has lasted long
    enough it is Little's law: the work in hand, over the time a request takes."""

    def __init__(self) -> None:
        self.in_hand = 0.0
        self._busy_since: float | None = None
        self._done: deque[tuple[float, float]] = deque()  # whole tenths of a second, and the work that ended then
        self._seconds = 0.0  # a request takes
        self._work = 0.0  # it is

    def busy(self, since: float | None) -> None:
        """Requests wait, or none do any more."""
        if self._busy_since is None or since is None:
            self._busy_since = since

    def began(self, work: float) -> None:
        self.in_hand += work

    def ended(self, work: float, now: float, seconds: float | None) -> None:
        """`seconds` it took; None if it did not come to its end."""
        self.in_hand = max(0.0, self.in_hand - work)
        if seconds is None:
            return
        self._seconds += (seconds - self._seconds) * (_NEW if self._seconds else 1.0)
        self._work += (work - self._work) * (_NEW if self._work else 1.0)
        tenth = int(now * 10) / 10
        if self._done and self._done[-1][0] == tenth:
            self._done[-1] = (tenth, self._done[-1][1] + work)
        else:
            self._done.append((tenth, work))
        while self._done[0][0] < now - WINDOW_SECONDS:
            self._done.popleft()

    def rate(self, now: float) -> float | None:
        """None while nothing is known."""
        if self._busy_since is not None and now - self._busy_since >= ENOUGH_SECONDS:
            since = max(self._busy_since, now - WINDOW_SECONDS)
            done = sum(work for at, work in self._done if at >= since)
            if done:
                return done / (now - since)
        return self.in_hand / self._seconds if self._seconds and self.in_hand else None

    def seconds_of(self, work: float) -> float:
        """That a request of so much work takes once it runs; 0 while nothing is known."""
        return self._seconds * work / self._work if self._work else 0.0
