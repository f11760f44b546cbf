"""What is asked of a fleet and when: sessions of one or more turns, of token ids that a seed decides."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

_FIRST_TOKEN, _LAST_TOKEN = 1_000, 100_000
"""Beyond those that the simulated engine's own words are made of: a prompt is never taken for a part of an answer."""

Tokens = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Turn:
    """Asked `pause` seconds after the turn before it was answered. Its prompt is all that was said, and `new`."""

    new: Tokens
    max_tokens: int
    pause: float = 0.0


@dataclass(frozen=True, slots=True)
class Session:
    arrival: float
    turns: tuple[Turn, ...]


@dataclass(frozen=True, slots=True)
class Trace:
    name: str
    sessions: tuple[Session, ...]


@dataclass(frozen=True, slots=True)
class Demand:
    """How much is to be asked: `requests` in all, `rate` a second, of so many `replicas`."""

    requests: int
    rate: float
    replicas: int


def text(chance: Random, tokens: int) -> Tokens:
    """Nobody else's."""
    return tuple(chance.choices(range(_FIRST_TOKEN, _LAST_TOKEN), k=tokens))
