"""Who computes where: every gateway has the same one core, and all else shares the others."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Cores:
    """By number."""

    gateway: frozenset[int]
    others: frozenset[int]

    @property
    def are_apart(self) -> bool:
        return not self.gateway & self.others


def divided() -> Cores:
    """Of those this process may use. On a single one all share it."""
    usable = os.sched_getaffinity(0)
    gateway = frozenset({max(usable)})
    return Cores(gateway, frozenset(usable) - gateway or gateway)


@contextmanager
def starting_on(cores: frozenset[int]) -> Iterator[None]:
    """What is started in the block stays on these cores, with all that it starts; threads count their number."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
