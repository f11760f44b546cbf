"""What a simulated engine says: a function of the prompt and nothing else, so that runs can be compared."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
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

    @staticmethod
    def of(tokenizer: Tokenizer) -> Script:
        first = tuple(tuple(tokenizer.encode(word, add_special_tokens=False)) for word in _WORDS)
        later = tuple(tuple(tokenizer.encode(f" {word}", add_special_tokens=False)) for word in _WORDS)
        return Script(first, later, next(iter(tokenizer.eos_token_ids), None))

    def answer(self, prompt: Sequence[int], sampling: SamplingParams) -> tuple[int, ...]:
        """At most `max_tokens` tokens: 32 to 64 and the end, unless the request asks for other lengths."""
        seed = int.from_bytes(hashlib.blake2b(b",".join(b"%d" % t for t in prompt), digest_size=8).digest(), "big")
        natural = max(_SHORTEST + seed % (_LONGEST - _SHORTEST + 1), sampling.min_tokens)
        if sampling.ignore_eos or self.end is None or sampling.max_tokens <= natural:
            return tuple(islice(self._tokens(seed), sampling.max_tokens))
        return (*islice(self._tokens(seed), natural), self.end)

    def _tokens(self, seed: int) -> Iterator[int]:
        step = 1 + 2 * (seed % 7)  # odd steps differ from prompt to prompt
        for at in count():
            words = self.first if at == 0 else self.later
            yield from words[(seed + at * step) % len(words)]
