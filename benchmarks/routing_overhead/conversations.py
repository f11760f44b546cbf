"""Conversations that share a system prompt and grow by a message of new text a turn, to about 1,000 tokens. Pure.

Words are a tokenizer's own, as often as such words are: a few of them most of the time. One in sixty was never said
before, as names and numbers are.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

_BEGINS_WORD: Final = "\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}"
_SHORTEST: Final = 2
_WORDS: Final = 5_000
_SYSTEM_WORDS: Final = 450
_MESSAGE_WORDS: Final = 60
TURNS: Final = 12

Message = dict[str, Any]


def words_of(folder: Path) -> list[str]:
    """Of a model's vocabulary, the most frequent first."""
    vocabulary = json.loads((folder / "tokenizer.json").read_bytes())["model"]["vocab"]
    ranked = sorted(vocabulary, key=vocabulary.__getitem__)
    whole = (token[1:] for token in ranked if token.startswith(_BEGINS_WORD))
    return [word for word in whole if len(word) >= _SHORTEST and word.isascii() and word.isalpha()][:_WORDS]


class Conversations:
    """Each is another one; the same seed makes the same ones again."""

    def __init__(self, words: Sequence[str], seed: int) -> None:
        self._words = words
        self._random = random.Random(seed)
        self._system = text_of(words, random.Random(0), _SYSTEM_WORDS)

    def messages(self) -> list[str]:
        """What the next one's user says, turn by turn."""
        return [text_of(self._words, self._random, _MESSAGE_WORDS) for _ in range(TURNS)]

    def begun(self) -> list[Message]:
        """A conversation that nobody has said anything in."""
        return [{"role": "system", "content": self._system}]

    def prompts(self, reply: str) -> Iterator[list[Message]]:
        """Of one whole conversation in which every answer is `reply`."""
        said = self.begun()
        for message in self.messages():
            said = [*said, {"role": "user", "content": message}]
            yield said
            said = [*said, {"role": "assistant", "content": reply}]


def text_of(words: Sequence[str], chosen: random.Random, count: int) -> str:
    """Sentences, in which the word of rank r comes about 1/r times as often as the first."""
    drawn = [words[int(len(words) ** chosen.random()) - 1] for _ in range(count)]
    drawn[7::60] = [f"{word}{chosen.getrandbits(20)}" for word in drawn[7::60]]
    drawn[9::10] = [f"{word}." for word in drawn[9::10]]
    return " ".join(drawn)
