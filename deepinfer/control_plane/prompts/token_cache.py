"""Texts and their tokens, as many as there is room for. Threads may share one: at worst they do something twice."""

from __future__ import annotations

from sys import getsizeof
from typing import Final

_ENTRY_BYTES: Final = 100


class TokenCache:
    """In two generations: when the young one has half of the room, the old one is forgotten and it becomes old."""

    def __init__(self, room: int) -> None:
        """`room`: bytes."""
        self.young: dict[str, bytes] = {}
        self._old: dict[str, bytes] = {}
        self._half = room // 2
        self._held = 0

    def get(self, text: str) -> bytes | None:
        found = self.young.get(text)
        if found is None and (found := self._old.get(text)) is not None:
            self.put(text, found)
        return found

    def put(self, text: str, tokens: bytes) -> None:
        self.young[text] = tokens
        self._held += getsizeof(text) + getsizeof(tokens) + _ENTRY_BYTES
        if self._held > self._half:
            self._old, self.young, self._held = self.young, {}, 0
