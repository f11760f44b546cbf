"""How long a range of layers takes on a device, and what a pipeline of them gives. Pure.

A step that makes one token for each of b requests reads the stage's weights once and the requests' keys and values, and
computes for each request:

    t(b) = (weights * (1 + s * (b - 1)) + b * keys and values of half the context) / bandwidth + layers * 0.1 ms

s is the part of a lone request's time that one request more costs: little where arithmetic waits for memory. Bandwidth
is what a measured layer's time says, or what was given, or a guess by the kind of device. The embedding is looked up,
not read; the head is read whole, a tied one too. The last term is for starting a layer's operations, whatever their
size; a measured layer's time has it already.

With a hop of c seconds and m groups of b requests in the pipeline at once:

    a lone request's token    sum(t(1)) + S * c     over S stages: S - 1 hops on, one back; none if S is 1
    tokens a second           m * b / max(sum(t(b)) + S * c, m * max(t(b)))     with the best m
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import accumulate

from deepinfer.planning.task import OfferedDevice, Task

_MOST_GROUPS = 64
_GUESSED_BANDWIDTH = {"cpu": 15e9, "cuda": 500e9}  # a desktop's memory in practice; a middling GPU
_OTHER_BANDWIDTH = 100e9
_REQUEST_SHARE = {"cpu": 0.35, "cuda": 0.01}  # the first as SmolLM2 on one core
_OTHER_SHARE = 0.05
_LAYER_SECONDS = 0.0001  # unless measured


class SpeedSource(StrEnum):
    """How a device's speed is known, best first."""

    MEASURED = "measured"
    GIVEN = "given"  # its bandwidth
    GUESSED = "guessed"  # by its kind


@dataclass(frozen=True, slots=True)
class Part:
    """A device and the layers `start:stop` it carries."""

    device: int
    start: int
    stop: int


Cut = tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Throughput:
    """At the task's concurrency, with the best number of groups in the pipeline at once."""

    tokens_per_second: float
    groups: int
    requests_in_a_group: int


class Speed:
    """The task's times, in seconds."""

    def __init__(self, task: Task) -> None:
        self._task = task
        model = task.model
        self._read = (0, *accumulate(model.layer_bytes))
        self._head_read = model.norm_bytes + (model.embedding_bytes if model.tied else model.head_bytes)
        self._kv_a_layer = model.kv_bytes * task.context // 2
        self._starting = [0 if device.layer_seconds else _LAYER_SECONDS for device in task.devices]
        self._bandwidths = [bandwidth_of(task, device) for device in task.devices]
        self._shares = [_REQUEST_SHARE.get(device.kind, _OTHER_SHARE) for device in task.devices]

    def stage(self, part: Part, requests: int) -> float:
        """One step of it for so many requests."""
        weights = self._read[part.stop] - self._read[part.start]
        if part.stop == self._task.model.layers:
            weights += self._head_read
        layers = part.stop - part.start
        work = weights * (1 + self._shares[part.device] * (requests - 1)) + requests * layers * self._kv_a_layer
        return work / self._bandwidths[part.device] + layers * self._starting[part.device]

    def hop(self, part: Part) -> float:
        """What coming to it, and back from the last to the first, adds to a token's time."""
        if part.start == 0:
            return 0.0
        return self._task.hop_seconds * (2 if part.stop == self._task.model.layers else 1)

    def token(self, cut: Sequence[Part], requests: int = 1) -> float:
        """From a token to the next of the same request."""
        return sum(self.stage(part, requests) + self.hop(part) for part in cut)

    def throughput(self, cut: Sequence[Part]) -> Throughput:
        concurrency = self._task.concurrency
        depths = range(1, min(concurrency, _MOST_GROUPS) + 1 if len(cut) > 1 else 2)
        return max((self._with_groups(cut, groups) for groups in depths), key=lambda t: t.tokens_per_second)

    def _with_groups(self, cut: Sequence[Part], groups: int) -> Throughput:
        concurrency = self._task.concurrency
        requests = -(-concurrency // groups)
        slowest = max(self.stage(part, requests) for part in cut)
        lap = max(self.token(cut, requests), groups * slowest)
        return Throughput(concurrency / lap, groups, requests)


def bandwidth_of(task: Task, device: OfferedDevice) -> float:
    """Bytes a second."""
    if device.layer_seconds is not None:
        return sum(task.model.layer_bytes) / task.model.layers / device.layer_seconds
    return device.bandwidth or _GUESSED_BANDWIDTH.get(device.kind, _OTHER_BANDWIDTH)


def source_of(device: OfferedDevice) -> SpeedSource:
    if device.layer_seconds is not None:
        return SpeedSource.MEASURED
    return SpeedSource.GUESSED if device.bandwidth is None else SpeedSource.GIVEN
