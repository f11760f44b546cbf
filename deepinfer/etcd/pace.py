"""Whether a member is so slow that another is worth a try. Pure: times are told, never looked up.

A member with a slow disk answers late although its cluster is fine, and no call fails. One slow call, or many at once,
tell nothing; a change must promise twice the pace; and what a member was like is remembered, so that members which are
all equally slow are each tried once in a while and never taken in turns.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

SLOW_SECONDS = 0.3
CALLS = 5  # one after another; calls that overlap are one observation
BETTER_BY = 2.0
REMEMBERED_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Pace:
    """What a call took, usually, and when that was so."""

    seconds: float
    at: float


def better_member(current: int, paces: Sequence[Pace | None], now: float) -> int | None:
    """Where to go from `current`; None to stay. An unknown member is worth a try, the next one first."""
    own = paces[current]
    if own is None or own.seconds < SLOW_SECONDS:
        return None
    expected = {}
    for step in range(1, len(paces)):
        member = (current + step) % len(paces)
        pace = paces[member]
        is_known = pace is not None and now - pace.at < REMEMBERED_SECONDS
        expected[member] = pace.seconds if pace is not None and is_known else 0.0
    best = min(expected, key=lambda member: expected[member], default=None)  # the first of equals
    return best if best is not None and expected[best] * BETTER_BY <= own.seconds else None


class Paces:
    """The members' paces, from the calls as they end."""

    def __init__(self, members: int) -> None:
        self._known: list[Pace | None] = [None] * members
        self._recent: deque[float] = deque(maxlen=CALLS)
        self._member = -1
        self._last_end = 0.0

    def better_than(self, member: int, began: float, ended: float) -> int | None:
        """Take one call to `member` into account; answers where to go instead, if anywhere."""
        if member != self._member:
            self._member = member
            self._recent.clear()
        elif began < self._last_end:
            return None
        self._last_end = ended
        self._recent.append(ended - began)
        if len(self._recent) < CALLS:
            return None
        self._known[member] = Pace(statistics.median(self._recent), ended)
        return better_member(member, self._known, ended)
