"""What texts a replica has had lately: a guess at what its cache holds, where the cache itself is not known.

A text is cut into pieces of some hundred characters, each named by itself and all before it. What came longest ago is
forgotten once more has come since than the cache can hold. Names are of this process only.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

PIECE_BYTES: Final = 512
LIKELY: Final = 0.8
"""That a text of which this is said is still cached."""
_UNKNOWN_ROOM: Final = 65_536  # tokens
_MOST_PIECES: Final = 65_536


def text_chain(text: bytes, session: str = "") -> list[int]:
    """Names of the text's whole pieces. A session's own text is only found by the session."""
    names = []
    parent = hash(session) if session else 0
    for start in range(0, len(text) - PIECE_BYTES + 1, PIECE_BYTES):
        parent = hash((parent, text[start : start + PIECE_BYTES]))
        names.append(parent)
    return names


class WarmTexts:
    """Of one replica, as one gateway sent them."""

    __slots__ = ("_names", "_room")

    def __init__(self) -> None:
        self._names: OrderedDict[int, None] = OrderedDict()
        self._room = _UNKNOWN_ROOM

    def knows(self, kv_tokens: int) -> None:
        """How many tokens the cache holds; 0: not known."""
        self._room = kv_tokens or _UNKNOWN_ROOM

    def came(self, chain: Sequence[int], bytes_a_token: float) -> None:
        """A request with this text went there."""
        names = self._names
        for name in reversed(chain):  # so that a text's end is forgotten before its begin
            names[name] = None
            names.move_to_end(name)
        most = min(_MOST_PIECES, int(self._room * bytes_a_token / PIECE_BYTES) + 1)
        while len(names) > most:
            names.popitem(last=False)

    def share(self, chain: Sequence[int]) -> float:
        """Of a text: how much of it came before."""
        for number, name in enumerate(chain):
            if name not in self._names:
                return number / len(chain)
        return 1.0 if chain else 0.0

    def clear(self) -> None:
        """The engine began anew."""
        self._names.clear()
