"""How often failed requests may be sent again: at most a fifth of what comes, so that retries never are the overload.

Pure: time is given. Some are always allowed, for a gateway that has little to do.
"""

from __future__ import annotations

from typing import Final

SHARE: Final = 0.2
MOST_SAVED: Final = 100.0
PER_SECOND: Final = 1.0


class RetryBudget:
    """Of one gateway."""

    __slots__ = ("_at", "_saved")

    def __init__(self, now: float) -> None:
        self._saved = 10.0
        self._at = now

    def earn(self) -> None:
        """For a new request."""
        self._saved = min(MOST_SAVED, self._saved + SHARE)

    def spend(self, now: float) -> bool:
        """Whether one may be sent again."""
        self._saved = min(MOST_SAVED, self._saved + (now - self._at) * PER_SECOND)
        self._at = now
        if self._saved < 1.0:
            return False
        self._saved -= 1.0
        return True
