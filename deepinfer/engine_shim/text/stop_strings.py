"""Where an answer ends because of a stop string.

Text that may be the beginning of a stop string is held back until it is known not to be, so no part of a stop string
ever leaves. The stop string that ends first counts, and of those that end together the longest: then it does not matter
in which pieces the text came.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """One sequence's stop strings."""

    def __init__(self, stops: Sequence[str], *, include: bool = False) -> None:
        self._stops = tuple(stops)
        self._include = include
        self._held = ""
        self.found: str | None = None

    def feed(self, text: str) -> str:
        """What of the text so far may leave now. Once `found` is set, nothing more does."""
        if not self._stops:
            return text
        if self.found is not None:
            return ""
        text = self._held + text
        match = self._first(text)
        if match is not None:
            start, self.found = match
            self._held = ""
            return text[: start + len(self.found)] if self._include else text[:start]
        kept = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]

    def flush(self) -> str:
        """What was held back, when no text follows."""
        held, self._held = self._held, ""
        return held

    def _first(self, text: str) -> tuple[int, str] | None:
        starts = [(text.find(stop), stop) for stop in self._stops]
        found = [(start, stop) for start, stop in starts if start >= 0]
        return min(found, key=lambda match: (match[0] + len(match[1]), match[0]), default=None)


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` may be the beginning of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
