"""The tokens of texts, by pieces that are already known.

A piece is known by its text and by what stands before it: nothing, a special token, or a word. In each of these places
a text has its own tokens, found by encoding it behind such a neighbour, whose own are then left out. Words are known by
themselves; what is longer (a message, or a part of a long one) too, so that it is looked up at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from tokenizers import Tokenizer

from deepinfer.control_plane.prompts.cuts import SPACES, VISIBLE, Cuts, cuts_of
from deepinfer.control_plane.prompts.sample import SAMPLE
from deepinfer.control_plane.prompts.token_cache import TokenCache
from deepinfer.engine_shim.kv_chain import token_bytes

_CUT = re.compile(r" (?<=[!-~] )(?=[!-~])")
_CHUNK: Final = 2048
"""Characters after which the next cut between words ends a chunk, so that a long text may grow and its chunks stay."""
_LOOKING: Final = 8
"""To look a word up costs as much as to encode the eighth part of it."""
_ROOM: Final = 64 << 20
"""Bytes, of all that is remembered of one tokenizer."""


class TooMuch(Exception):
    """More would have to be encoded than was allowed."""


class Allowance:
    """How many characters may still be encoded."""

    def __init__(self, characters: float) -> None:
        self._left = characters

    def take(self, characters: int) -> None:
        self._left -= characters
        if self._left < 0:
            raise TooMuch


class _Place:
    """Behind one kind of neighbour; with `space`, behind the space at which a text was cut."""

    def __init__(self, tokenizer: Tokenizer, room: int, neighbour: str, space: str = "") -> None:
        self.cache = TokenCache(room)
        self._encode = tokenizer.encode
        self._before = neighbour + space
        self._own = tokenizer.encode(neighbour, add_special_tokens=False).ids

    def encoded(self, text: str) -> bytes:
        """`ValueError` when the neighbour's own tokens are not what they were."""
        ids = self._encode(self._before + text, add_special_tokens=False).ids
        own = len(self._own)
        if ids[:own] != self._own:
            raise ValueError(text)
        return token_bytes(ids[own:])


class Texts:
    """Of one tokenizer. `grain` is the least that is remembered: a "word", a "segment" between special tokens, or a
    whole "prompt".
    """

    def __init__(self, tokenizer: Tokenizer, room: int = _ROOM) -> None:
        """Slow: it tries itself."""
        self._tokenizer = tokenizer
        self._room = room
        self._cut(cuts_of(tokenizer))
        if self._cuts.words and not self._is_exact():
            self._cut(replace(self._cuts, words=False, reason="between words it does not cut as it seemed"))
        if self._cuts.special is not None and not self._is_exact():
            self._cut(Cuts(reason="at special tokens it does not cut as it seemed"))

    @property
    def grain(self) -> str:
        if self._cuts.special is None:
            return "prompt"
        return "word" if self._cuts.words else "segment"

    @property
    def reason(self) -> str:
        """Why it is no finer; "" for words."""
        return self._cuts.reason

    def tokens(self, text: str, allowance: Allowance) -> bytes:
        """Without the special tokens around it. `TooMuch`."""
        try:
            return self._tokens(text, allowance)
        except ValueError:
            allowance.take(len(text))
            return self.whole(text)

    def whole(self, text: str) -> bytes:
        return token_bytes(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def _tokens(self, text: str, allowance: Allowance) -> bytes:
        special = self._cuts.special
        pieces = [text] if special is None else special.split(text)
        if self._cuts.strips:
            for at in range(1, len(pieces), 2):
                if pieces[at] in self._cuts.strips:
                    pieces[at + 1] = pieces[at + 1].lstrip(SPACES)
        found, place = [], self._first
        for at, piece in enumerate(pieces):
            if at & 1:
                found.append(self._special[piece])
                place = self._behind
            elif piece:
                found.append(place.cache.get(piece) or self._piece(piece, place, allowance))
        return b"".join(found)

    def _piece(self, text: str, place: _Place, allowance: Allowance) -> bytes:
        if not self._cuts.words:
            allowance.take(len(text))
            tokens = place.encoded(text)
            place.cache.put(text, tokens)
            return tokens
        found = []
        for chunk in _chunks(text):
            found.append(place.cache.get(chunk) or self._chunk(chunk, place, allowance))
            place = self._inside
        return b"".join(found)

    def _chunk(self, text: str, place: _Place, allowance: Allowance) -> bytes:
        allowance.take(len(text) // _LOOKING)
        young = self._words.young
        first, *words = text.split(" ")
        known: list[bytes | None] = list(map(young.get, words))
        new = [at for at, tokens in enumerate(known) if not tokens]
        if first[-1:] not in VISIBLE or not all(_is_word(words[at]) for at in new):
            first, *words = _CUT.split(text)  # not every space is one to cut at
            known, new = [None] * len(words), list(range(len(words)))
        for at in new:
            known[at] = self._word(words[at], allowance)
        tokens = self._first_word(first, place, allowance) + b"".join(filter(None, known))
        place.cache.put(text, tokens)
        return tokens

    def _first_word(self, text: str, place: _Place, allowance: Allowance) -> bytes:
        found = place.cache.get(text)
        if found is None:
            allowance.take(len(text))
            found = place.encoded(text)
            place.cache.put(text, found)
        return found

    def _word(self, text: str, allowance: Allowance) -> bytes:
        found = self._words.get(text)
        if found is None:
            allowance.take(len(text))
            found = self._inside.encoded(text)
            if text[-1] in VISIBLE:  # else it is no word where more follows
                self._words.put(text, found)
        return found

    def _cut(self, cuts: Cuts) -> None:
        tokenizer = self._tokenizer
        self._cuts = cuts
        eighth = self._room // 8
        self._first = _Place(tokenizer, eighth, "")
        self._behind = _Place(tokenizer, 3 * eighth, cuts.lead)
        self._inside = _Place(tokenizer, 2 * eighth, "a", " ")
        self._words = TokenCache(2 * eighth)  # of `_inside`, that more may follow
        added = tokenizer.get_added_tokens_decoder().items()
        self._special = {token.content: token_bytes([number]) for number, token in added}

    def _is_exact(self) -> bool:
        """On a text that has in it what texts may have in them."""
        lead = self._cuts.lead
        for text in SAMPLE:
            for tried in (text, lead + text, f"{lead}user\n{text}{lead}\n{lead}{text}"):
                try:
                    cut = self._tokens(tried, Allowance(float("inf")))
                except ValueError:
                    return False
                if cut != self.whole(tried):
                    return False
        return True


def _is_word(text: str) -> bool:
    return text[:1] in VISIBLE and text[-1:] in VISIBLE


def _chunks(text: str) -> Iterator[str]:
    start = 0
    while cut := _CUT.search(text, start + _CHUNK):
        yield text[start : cut.start()]
        start = cut.end()
    yield text[start:]
