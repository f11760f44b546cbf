"""Tokens to text, as they come, never half a character.

`ByteDetokenizer` is exact: it serves every tokenizer whose tokens are bytes (GPT-2's byte-level BPE and ours).
`WindowDetokenizer` serves the others by decoding a few of the last tokens again at each step. Its limits: a run of raw
byte tokens that turns out not to be UTF-8 after a valid start keeps that start, and a tail that stays undecodable for
`PATIENCE` tokens is given out as it is.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Protocol

PATIENCE: Final = 16
"""A character has at most 4 bytes, so a tail this long will not become one."""
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Detokenizer(Protocol):
    """One sequence's text."""

    def feed(self, token_ids: Iterable[int]) -> str:
        """The whole characters that these tokens completed."""
        ...

    def flush(self) -> str:
        """What is left when no token follows: U+FFFD for a character that never became whole."""
        ...


class ByteDetokenizer:
    """For tokens that are bytes. A skipped token has no bytes."""

    def __init__(self, token_bytes: Callable[[int], bytes]) -> None:
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token_ids: Iterable[int]) -> str:
        return self._decoder.decode(b"".join(map(self._token_bytes, token_ids)))

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class WindowDetokenizer:
    """For any other decoder. The window begins where a character began, with a token before it as context."""

    def __init__(self, decode: Callable[[Sequence[int]], str], skipped: Callable[[int], bool]) -> None:
        self._decode = decode
        self._skipped = skipped
        self._context: list[int] = []  # already given out; decoders strip a space at the beginning, but not here
        self._context_text = ""
        self._pending: list[int] = []

    def feed(self, token_ids: Iterable[int]) -> str:
        return "".join(self._feed_one(token_id) for token_id in token_ids if not self._skipped(token_id))

    def flush(self) -> str:
        return self._give_out(self._decode(self._context + self._pending)) if self._pending else ""

    def _feed_one(self, token_id: int) -> str:
        self._pending.append(token_id)
        text = self._decode(self._context + self._pending)
        unfinished = text.endswith(_REPLACEMENT) or len(text) <= len(self._context_text)
        if unfinished and len(self._pending) < PATIENCE:
            return ""
        return self._give_out(text)

    def _give_out(self, text: str) -> str:
        new = text[len(self._context_text) :]
        self._context, self._pending = self._pending, []
        self._context_text = self._decode(self._context)
        return new
