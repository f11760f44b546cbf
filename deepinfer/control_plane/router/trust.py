"""Whether what is known of an engine's KV cache is to be believed. Pure: told what was foreseen, and what came.

The engine tells with each answer how much of its prompt was cached. Where that goes on being another share than the
index said, the index is wrong, whatever the reason: it is not used for a time, which doubles while it stays wrong, and
then begins with a new snapshot. The same where prompts have other tokens than were foreseen: by other tokens nothing
is found.
"""

from __future__ import annotations

from typing import Final

_NEW: Final = 0.25
_WRONG: Final = 0.3
"""Of a prompt, in the mean of the latest ones."""
_ENOUGH: Final = 4
_MISCOUNTED: Final = 2
"""Prompts in a row."""
NOT_YET: Final = "its KV contents are not known yet"
FIRST_SECONDS: Final = 1.0
LONGEST_SECONDS: Final = 60.0


class Trust:
    """In one engine's index."""

    __slots__ = ("_lasts", "_miscounted", "_seen", "error", "missing", "reason", "until")

    def __init__(self) -> None:
        self.error = 0.0  # mean share of a prompt that was foreseen wrongly; below 0: more was cached than foreseen
        self.missing = NOT_YET  # why there is nothing to believe; "": there is
        self.reason = ""  # why it is not believed until `until`
        self.until = 0.0
        self._seen = 0
        self._miscounted = 0
        self._lasts = FIRST_SECONDS

    def why_not(self, now: float) -> str:
        """In a sentence's words; "" if it is believed."""
        return self.reason if now < self.until else self.missing

    def compared(self, foreseen: float, cached: int, prompt_tokens: int, now: float) -> bool:
        """One answer came. Whether the index turned out wrong just now."""
        if prompt_tokens <= 0 or now < self.until:
            return False
        self._seen += 1
        self.error += max(_NEW, 1 / self._seen) * ((foreseen - cached) / prompt_tokens - self.error)
        if abs(self.error) < _WRONG or self._seen < _ENOUGH:
            if self._seen > 4 * _ENOUGH:
                self._lasts = FIRST_SECONDS
            return False
        much = "less" if self.error > 0 else "more"
        self._give_up(f"of its prompts {abs(self.error):.0%} {much} were cached than was foreseen", now)
        return True

    def counted(self, foreseen: int, tokens: int, now: float) -> bool:
        """So many tokens one prompt had. Whether they turned out just now to be other ones than are foreseen."""
        if now < self.until:
            return False
        self._miscounted = 0 if tokens == foreseen else self._miscounted + 1
        if self._miscounted < _MISCOUNTED:
            return False
        self._give_up("its prompts have more or fewer tokens than were foreseen", now)
        return True

    def _give_up(self, reason: str, now: float) -> None:
        self.reason = reason
        self.until, self._lasts = now + self._lasts, min(2 * self._lasts, LONGEST_SECONDS)
        self.error, self._seen, self._miscounted = 0.0, 0, 0
