"""What a side tells of a batch of answers, and what follows from it. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any


@dataclass(frozen=True)
class SeatOf:
    """A stage after the head, as processes tell each other."""

    name: str
    endpoint: str
    start: int = 0
    stop: int = 1


@dataclass(frozen=True)
class Step:
    """One batch's way through the pipeline. Seconds, by the head's clock; lists have one entry for each stage."""

    began: float
    came: float
    sequences: int
    tokens: int
    computing: list[float]
    queued: list[float]

    @property
    def decodes(self) -> bool:
        return self.tokens == self.sequences > 0


@dataclass(frozen=True)
class Answered:
    """What a batch of answers took; when each token came, by the side's clock."""

    seconds: float
    tokens: list[list[int]]
    came: list[list[float]]
    steps: list[Step]

    @property
    def rate(self) -> float:
        return sum(map(len, self.tokens)) / self.seconds


def answered(told: dict[str, Any]) -> Answered:
    return Answered(told["seconds"], told["tokens"], told["came"], [Step(**step) for step in told["steps"]])


@dataclass(frozen=True)
class Hop:
    """Medians in seconds, of one hop at one stream: all of it, and what of it is not the head's own planning."""

    lap: float  # from the beginning of a step at the head to that of the next one, less what stages computed
    way: float  # the same until the result was back in the head's process
    queued: float  # from rows read to rows computed on, of a stage after the head


def hop_of(steps: Sequence[Step]) -> Hop:
    """Of steps of one stream, one after the other."""
    alone = [step for step in steps if step.decodes and step.sequences == 1]
    laps = [(after.began - step.began - sum(step.computing)) / len(step.computing) for step, after in pairwise(alone)]
    ways = [(step.came - step.began - sum(step.computing)) / len(step.computing) for step in alone]
    queued = [seconds for step in alone for seconds in step.queued[1:]]
    return Hop(statistics.median(laps), statistics.median(ways), statistics.median(queued))


@dataclass(frozen=True)
class Load:
    """How busy a pipeline was while it decoded."""

    busy: tuple[float, ...]  # of each stage, which share of the time it computed
    step: tuple[float, ...]  # of each stage, the median seconds of a step
    sequences: float  # in a step
    under_way: float  # steps at once, on average


def load_of(steps: Sequence[Step]) -> Load:
    decoding = [step for step in steps if step.decodes]
    began, ended = min(step.began for step in decoding), max(step.came for step in decoding)
    stages = list(zip(*(step.computing for step in decoding), strict=True))
    return Load(
        tuple(sum(stage) / (ended - began) for stage in stages),
        tuple(map(statistics.median, stages)),
        statistics.mean(step.sequences for step in decoding),
        sum(step.came - step.began for step in decoding) / (ended - began),
    )


def resumed_after(came: Sequence[float], killed: float) -> float:
    """How long the longest silence after a stage was killed lasted: what was on its way still comes."""
    return max(after - max(before, killed) for before, after in pairwise(came) if after > killed)
