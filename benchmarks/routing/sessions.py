"""What is asked: sessions of several turns, whose system prompts are shared in groups. A seed makes the same ones."""

from __future__ import annotations

import random
from dataclasses import dataclass

_QUESTION_WORDS = 30
_SENTENCE_WORDS = 12
_VOCABULARY = (
    "harbour lantern valley orchard compass thunder blanket copper meadow whistle anchor velvet granite saffron "
    "lighthouse parchment willow wagon pendulum marble tapestry quarry violin thicket glacier cinnamon "
    "windmill basket ferry almanac garden turret silver hammock tributary ladder bridge porcelain robin "
    "sandstone market mirror hammer the a of and with beside under near from toward every old quiet small "
    "bright narrow painted wooden northern early carries holds follows crosses repairs remembers measures gathers "
    "paints borrows hides counts keeps answers"
)
_WORDS = _VOCABULARY.split()
"""Of the model's tokens about 1.2 a word with what stands between them, as English prose has; then what can be cached
of all prompts (`oracle.py`) is 85 and 82.5 % of the two shapes."""


@dataclass(frozen=True)
class Shape:
    """How many sessions, how much they share, and how long they are."""

    name: str
    sessions: int
    groups: int
    system_words: int
    turns: int


WARM_UP = Shape("warm-up", sessions=6, groups=2, system_words=200, turns=2)
SHAPES = {
    shape.name: shape
    for shape in (
        Shape("easy", sessions=24, groups=8, system_words=450, turns=4),
        Shape("hard", sessions=48, groups=16, system_words=520, turns=3),
    )
}


@dataclass(frozen=True)
class Session:
    """One user's: the answers to earlier questions go along with each question."""

    number: int
    system: str
    questions: tuple[str, ...]


def sessions(shape: Shape, seed: int) -> list[Session]:
    """In the order in which they begin."""
    chance = random.Random(f"{shape.name} {seed}")
    systems = [f"You know a town. {_prose(chance, shape.system_words)}" for _ in range(shape.groups)]
    made = [
        Session(
            number,
            systems[number % shape.groups],
            tuple(f"Go on from here: {_prose(chance, _QUESTION_WORDS)}" for _ in range(shape.turns)),
        )
        for number in range(shape.sessions)
    ]
    chance.shuffle(made)
    return made


def _prose(chance: random.Random, words: int) -> str:
    """Sentences of words; each prompt is another one."""
    said = chance.choices(_WORDS, k=words)
    sentences = [said[at : at + _SENTENCE_WORDS] for at in range(0, words, _SENTENCE_WORDS)]
    return " ".join(" ".join(sentence).capitalize() + "." for sentence in sentences)
