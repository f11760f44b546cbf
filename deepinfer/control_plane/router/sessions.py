"""Which replica a session's last request went to, and how long it was: for what the client itself calls a session."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

_MOST: Final = 65_536


class Sessions:
    """Of one gateway. The longest unused are forgotten first."""

    def __init__(self) -> None:
        self._last: OrderedDict[tuple[str, str], tuple[str, int]] = OrderedDict()

    def last(self, model: str, session: str) -> tuple[str, int]:
        """The placement, and tokens that it has computed of the session; ("", 0) if there is none."""
        return self._last.get((model, session), ("", 0)) if session else ("", 0)

    def went(self, model: str, session: str, placement: str, tokens: int) -> None:
        """The session's newest request."""
        key = (model, session)
        self._last[key] = (placement, tokens)
        self._last.move_to_end(key)
        if len(self._last) > _MOST:
            self._last.popitem(last=False)
