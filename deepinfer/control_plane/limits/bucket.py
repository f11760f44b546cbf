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
            held = self._held + (now - self._at) * self.most / WINDOW_SECONDS
            self._held, self._at = held if held < self.most else self.most, now
        return self._held

    def spend(self, units: float, now: float) -> bool:
        """Take so much if it is there; what is more than a minute's worth needs a full bucket."""
        left = self.left(now)
        if left < units and left < self.most:
            return False
        self._held = left - units
        return True

    def take(self, units: float, now: float) -> None:
        """Also more than is left; a negative number gives back."""
        if units:
            held = self.left(now) - units
            self._held = held if held < self.most else self.most

    def seconds_until(self, units: float, now: float) -> float:
        """Until it has them."""
        missing = min(units, self.most) - self.left(now)
        return max(0.0, missing * WINDOW_SECONDS / self.most)
