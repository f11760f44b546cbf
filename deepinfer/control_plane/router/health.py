"""Whether a replica that answered badly gets further requests. Pure: told what happened, and when.

`FAILURES` in a row eject it, for a time that doubles with each ejection. Then one real request is its probe: a good
answer takes it back, a bad one ejects it again. A replica that computes much slower than it used to, while its peers do
not, is ejected too. `choose` sees to it that never more than half of a model's replicas are left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from statistics import median
from typing import Final

FAILURES: Final = 3
FIRST_SECONDS: Final = 1.0
LONGEST_SECONDS: Final = 60.0
FORGIVEN_SECONDS: Final = 60.0
"""Of good answers, after which the next ejection is as short as the first."""
SLOWED: Final = 4.0
"""So many times slower than before, its peers' own slowing taken out, is ejected."""


class Standing(IntEnum):
    """The less, the better."""

    PROBE = 0  # its time is over, and nobody tried it since: one request should
    TRUSTED = 1
    EJECTED = 2


class Health:
    """Of one engine, as one gateway has seen it. Seconds are of any clock that never goes back."""

    __slots__ = ("_failures", "_lasts", "_probing", "_returned", "ejections", "until")

    def __init__(self) -> None:
        self.ejections = 0  # in all
        self._failures = 0  # in a row
        self._lasts = FIRST_SECONDS  # the next ejection
        self.until = 0.0  # when its ejection ends, or ended if nobody has tried it since; 0: it is trusted
        self._probing = False
        self._returned = 0.0

    def standing(self, now: float) -> Standing:
        if not self.until:
            return Standing.TRUSTED
        return Standing.EJECTED if self._probing or now < self.until else Standing.PROBE

    def asked(self, now: float) -> None:
        """A request goes there."""
        if self.standing(now) is Standing.PROBE:
            self._probing = True

    def began(self, now: float) -> None:
        """To answer: it is back, and on trial."""
        if self._probing:
            self.until, self._probing, self._returned = 0.0, False, now
            self._failures = FAILURES - 1

    def answered(self, now: float) -> None:
        """All of it came."""
        self._failures = 0
        if not self.until and now - self._returned > FORGIVEN_SECONDS:
            self._lasts = FIRST_SECONDS

    def failed(self, now: float) -> bool:
        """Whether that ejects it."""
        self._failures += 1
        if self.until and not self._probing:
            return False  # of a request that it had before
        if not self._probing and self._failures < FAILURES:
            return False
        self.eject(now)
        return True

    def acquitted(self) -> None:
        """Another one failed the same request: that is what is wrong."""
        self._failures = max(0, self._failures - 1)

    def said_nothing(self) -> None:
        """The request ended before the replica could show anything: somebody else may be its probe."""
        self._probing = False

    def eject(self, now: float) -> None:
        self.ejections += 1
        self._failures, self._probing = 0, False
        self.until = now + self._lasts
        self._lasts = min(LONGEST_SECONDS, 2 * self._lasts)


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast one engine makes tokens, by its own word: now, and as it used to be. Seconds for one token."""

    now: float = 0.0
    usual: float = 0.0

    def after(self, seconds: float) -> Pace:
        """Slowly forgets, and sooner what was slower: what it once could is what it should."""
        if seconds <= 0.0:
            return self
        share = 0.5 if seconds < self.usual else 0.02
        return Pace(seconds, seconds if not self.usual else self.usual + share * (seconds - self.usual))

    @property
    def slowing(self) -> float:
        """1.0: as ever."""
        return self.now / self.usual if self.usual else 1.0


def slowed(pace: Pace, peers: Iterable[Pace]) -> bool:
    """Whether this one slowed down where its peers did not. Unlike cards are compared with themselves."""
    others = [peer.slowing for peer in peers]
    return bool(others) and pace.slowing > SLOWED * max(1.0, median(others))
