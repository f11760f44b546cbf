"""Requests of one model that wait for room at an engine: in order of priority, and within one as they came. Pure.

A lower number comes first, as in vLLM: that of the key's class, then the request's own.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

Priority = tuple[int, int]
_LARGEST = 1 << 63


def urgency(said: object) -> int:
    """What a request says of its own priority; 0 if that is nothing one can go by."""
    return said if isinstance(said, int) and -_LARGEST <= said < _LARGEST else 0


@dataclass(eq=False, slots=True)
class Waiting:
    """One request. `work` in tokens; `size` is what its body takes of memory."""

    priority: Priority
    work: float
    size: int
    left: bool = False


W = TypeVar("W", bound=Waiting)


class _Level(Generic[W]):
    __slots__ = ("count", "line", "work")

    def __init__(self) -> None:
        self.line: deque[W] = deque()
        self.count = 0
        self.work = 0.0


class ModelQueue(Generic[W]):
    """Who leaves the middle of a line stays in it as a gap until the line comes there."""

    def __init__(self) -> None:
        self.size = 0
        self._levels: dict[Priority, _Level[W]] = {}
        self._order: list[Priority] = []

    def __len__(self) -> int:
        return sum(level.count for level in self._levels.values())

    @property
    def work(self) -> float:
        return sum(level.work for level in self._levels.values())

    def __iter__(self) -> Iterator[W]:
        for priority in self._order:
            yield from (waiting for waiting in self._levels[priority].line if not waiting.left)

    @property
    def first(self) -> W | None:
        return next(iter(self), None)

    @property
    def last(self) -> W | None:
        """The newest of those that matter least."""
        for priority in reversed(self._order):
            return next((waiting for waiting in reversed(self._levels[priority].line) if not waiting.left), None)
        return None

    def ahead_of(self, priority: Priority) -> tuple[int, float]:
        """How many are served before a newcomer of this priority, and how much work they are."""
        before = [level for known, level in self._levels.items() if known <= priority]
        return sum(level.count for level in before), sum(level.work for level in before)

    def add(self, waiting: W) -> None:
        level = self._levels.get(waiting.priority)
        if level is None:
            level = self._levels[waiting.priority] = _Level()
            insort(self._order, waiting.priority)
        level.line.append(waiting)
        level.count += 1
        level.work += waiting.work
        self.size += waiting.size

    def leave(self, waiting: W) -> None:
        """It is served, or waits no longer."""
        if waiting.left:
            return
        waiting.left = True
        level = self._levels[waiting.priority]
        level.count -= 1
        level.work -= waiting.work
        self.size -= waiting.size
        while level.line and level.line[0].left:
            level.line.popleft()
        if not level.count:
            del self._levels[waiting.priority]
            self._order.remove(waiting.priority)
