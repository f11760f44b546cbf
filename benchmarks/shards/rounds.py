"""Sides answer the same prompts, one after the other; who is first changes with every round."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from benchmarks.engine import prompts_of

REST_SECONDS = 0.2  # threads that wait for work busily have gone to sleep then

T = TypeVar("T")
Ask = Callable[[list[list[int]]], T]


def rounds(folder: Path, streams: int, count: int, sides: Mapping[str, Ask[T]]) -> list[dict[str, T]]:
    """Of each round: side -> what its `Ask` gave. The first, which warms all up, is not among them."""
    prompts = prompts_of(folder, streams)
    found = []
    for number in range(count + 1):
        taken: dict[str, T] = {}
        for name in in_turn(list(sides), number):
            time.sleep(REST_SECONDS)
            taken[name] = sides[name](prompts)
        if number:
            found.append({name: taken[name] for name in sides})
    return found


def in_turn(names: Sequence[str], number: int) -> list[str]:
    """Forwards, then backwards: drift counts for nobody."""
    return list(names) if number % 2 else list(reversed(names))
