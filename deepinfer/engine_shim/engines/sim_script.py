"""What a simulated engine says: a function of the prompt and nothing else, so that runs can be compared.

A prompt that ends with the beginning of an answer is answered with its rest, as by any model at temperature 0: to
whatever was asked, a prompt and the first half of its answer have the second half as theirs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count, islice
from typing import Final

from deepinfer.engine_shim.text.tokenizer import Tokenizer
from deepinfer.engine_shim.token_engine import SamplingParams

_TALE: Final = (
    "the river carries small stones past quiet mills and every morning someone counts them before "
    "bread is baked while geese walk over wet grass toward a slow blue evening"
)
_WORDS: Final = tuple(_TALE.split())
_SHORTEST, _LONGEST = 32, 64


@dataclass(frozen=True, slots=True)
class Script:
    """The words of one tokenizer: as an answer's first word, and with a space before."""

    first: tuple[tuple[int, ...], ...]
    later: tuple[tuple[int, ...], ...]
    end: int | None  # the token that ends an answer, if the tokenizer has one
    words: frozenset[int]  # all tokens that answers are made of
    openings: dict[int, list[tuple[int, ...]]]  # first token -> first words

    @staticmethod
    def of(tokenizer: Tokenizer) -> Script:
        first = tuple(tuple(tokenizer.encode(word, add_special_tokens=False)) for word in _WORDS)
        later = tuple(tuple(tokenizer.encode(f" {word}", add_special_tokens=False)) for word in _WORDS)
        openings: dict[int, list[tuple[int, ...]]] = {}
        for word in first:
            openings.setdefault(word[0], []).append(word)
        end = next(iter(tokenizer.eos_token_ids), None)
        return Script(first, later, end, frozenset(chain(*first, *later)), openings)

    def answer(self, prompt: Sequence[int], sampling: SamplingParams) -> tuple[int, ...]:
        """At most `max_tokens` tokens: 32 to 64 and the end, unless the request asks for other lengths."""
        seed, told = self._place(prompt)
        left = _SHORTEST + seed % (_LONGEST - _SHORTEST + 1) - told
        natural = max(left, sampling.min_tokens, 0)
        if sampling.ignore_eos or self.end is None or sampling.max_tokens <= natural:
            return tuple(islice(self._tokens(seed), told, told + sampling.max_tokens))
        return (*islice(self._tokens(seed), told, told + natural), self.end)

    def _place(self, prompt: Sequence[int]) -> tuple[int, int]:
        """The seed of the tale that the prompt is in the midst of, and how much of it is told; else that of a new one.

        The earliest place counts where a tale begins of which all that follows is the beginning: it stays the earliest
        while the tale goes on. Only what is made of the tale's own tokens up to the prompt's end can be one.
        """
        start = len(prompt)
        while start and prompt[start - 1] in self.words:
            start -= 1
        hashed, before = 0, hashlib.blake2b(digest_size=8)
        for at in range(start, len(prompt) + 1):
            if at == len(prompt) or self._may_begin(prompt, at):
                before.update(b",".join([b"%d" % token for token in prompt[hashed:at]]))
                hashed, seed = at, int.from_bytes(before.digest(), "big")
                if all(
                    prompt[i] == token for i, token in zip(range(at, len(prompt)), self._tokens(seed), strict=False)
                ):
                    break
                before.update(b"," if at else b"")
        return seed, len(prompt) - at

    def _may_begin(self, prompt: Sequence[int], at: int) -> bool:
        words = self.openings.get(prompt[at], ())
        return any(tuple(prompt[at : at + len(word)]) == word[: len(prompt) - at] for word in words)

    def _tokens(self, seed: int) -> Iterator[int]:
        step = 1 + 2 * (seed % 7)  # odd steps differ from prompt to prompt
        for at in count():
            words = self.first if at == 0 else self.later
            yield from words[(seed + at * step) % len(words)]
