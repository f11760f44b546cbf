"""So much a minute, counted as a bucket that fills evenly and holds one minute's worth. Pure: time is given.

What turned out to be more than foreseen is owed, so that the rate holds in the long run whatever a moment brings.
"""

from __future__ import annotations

from typing import Final

WINDOW_SECONDS: Final = 60.0


class Bucket:
    """`most`: units a minute."""

    __slots__ = ("_at", "_held", "most")

    def __init__(self, most: float, now: float) -> None:
        self.most = most
        self._held = most
        self._at = now

    def change(self, most: float, now: float) -> None:
        """Another limit from now on; what was used stays used."""
        self._held = self.left(now) + most - self.most
        self.most = most

    def left(self, now: float) -> float:
        if now > self._at:
            self._held = min(self.most, self._held + (now - self._at) * self.most / WINDOW_SECONDS)
            self._at = now
        return self._held

    def take(self, units: float, now: float) -> None:
        """Also more than is left; a negative number gives back."""
        if not units:
            return
        self._held = min(self.most, self.left(now) - units)

    def seconds_until(self, units: float, now: float) -> float:
        """Until so much is left; what is more than a minute's worth needs a full bucket."""
        missing = min(units, self.most) - self.left(now)
        return max(0.0, missing * WINDOW_SECONDS / self.most)
