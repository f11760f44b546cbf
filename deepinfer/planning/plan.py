"""The plan of a task: its stages in numbers, who is left out and why, what it will do; or why there is none. Pure.

`plan` decides everything; `plan_by_hand` takes the layers as told and checks them. Both answer a `Refusal` where
something does not fit, before anybody loads a byte.
"""

from __future__ import annotations

from collections.abc import Sequence

from deepinfer.fleet.errors import DeepinferError
from deepinfer.fleet.resource import Record
from deepinfer.planning import reasons
from deepinfer.planning.refusal import Refusal, refusal, refusal_by_hand
from deepinfer.planning.speed import Cut, Part, SpeedSource, source_of
from deepinfer.planning.split import Split
from deepinfer.planning.task import KV_BLOCK, Task
from deepinfer.planning.words import slower_words

_AS_FAST = 0.005  # no prediction is better than that


class LayersDoNotAddUp(DeepinferError):
    """The layers told by hand are not those of the model."""


class StagePlan(Record):
    """A device and the layers `start:stop` it carries."""

    device: str
    start: int
    stop: int
    weight_bytes: int
    kv_bytes: int
    working_bytes: int
    reserve_bytes: int
    free_bytes: int
    seconds: float  # for one token of a lone request, without hops
    speed: SpeedSource

    @property
    def layers(self) -> int:
        return self.stop - self.start


class LeftOut(Record):
    """A device that carries nothing."""

    device: str
    why: str
    slower: float | None = None  # by which part it would be slower with it: 0.23 is 23 %


class Prediction(Record):
    """What the pipeline will do."""

    seconds_per_token: float  # of a lone request
    tokens_per_second: float  # at the task's concurrency
    groups: int  # in the pipeline at once
    requests_in_a_group: int
    kv_tokens: int  # that every stage has room for, as it is cut


class Plan(Record):
    """Stages in the pipeline's order."""

    stages: tuple[StagePlan, ...]
    left_out: tuple[LeftOut, ...] = ()
    prediction: Prediction
    why: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def plan(task: Task) -> Plan | Refusal:
    split = Split(task)
    by_memory = split.by_memory()
    if not by_memory or task.context > task.model.longest_context:
        return refusal(task, split.regardless())
    guessed = _guessed(task)
    if guessed:
        left_out = tuple(_left_out_by_memory(split, task, device) for device in _idle(task, by_memory))
        return _in_numbers(task, split, by_memory, left_out, reasons.by_memory(task, by_memory, guessed))
    cut, left_out = _by_speed(task, split, by_memory)
    return _in_numbers(task, split, cut, left_out, reasons.by_speed(task, split, cut, by_memory))


def plan_by_hand(task: Task, counts: Sequence[int]) -> Plan | Refusal:
    """`counts`: how many layers each device carries, in order. Raises `LayersDoNotAddUp`."""
    _check_counts(task, counts)
    split = Split(task)
    ends = [sum(counts[: number + 1]) for number in range(len(counts))]
    parts = zip(range(len(counts)), counts, ends, strict=True)
    cut = tuple(Part(device, end - count, end) for device, count, end in parts if count)
    by_itself = plan(task)
    if not all(map(split.fits, cut)):
        return by_itself if isinstance(by_itself, Refusal) else refusal_by_hand(task, cut, _words(task, by_itself))
    if task.context > task.model.longest_context:
        return refusal(task, cut)
    left_out = tuple(
        LeftOut(device=task.devices[device].name, why="no layers were given to it") for device in _idle(task, cut)
    )
    made = _in_numbers(task, split, cut, left_out, reasons.by_hand(_guessed(task)))
    if isinstance(by_itself, Refusal):
        return made
    return made.model_copy(update={"warnings": _slower_by_hand(task, split, cut, by_itself)})


def _by_speed(task: Task, split: Split, by_memory: Cut) -> tuple[Cut, tuple[LeftOut, ...]]:
    best = _fastest(split, (split.by_speed(), by_memory))
    with_each = {device: split.by_speed(device) for device in _idle(task, best)}
    cut = _fastest(split, (best, *with_each.values()))
    pairs = {device: (cut, with_each.get(device, best)) for device in _idle(task, cut)}
    return cut, tuple(_left_out_by_speed(split, task, device, cuts) for device, cuts in pairs.items())


def _fastest(split: Split, cuts: Sequence[Cut]) -> Cut:
    """The search for throughput is no proof: what a device that must take part leads to may be a little better."""
    best = cuts[0]
    for cut in cuts[1:]:
        if cut and split.score(cut) < split.score(best) * (1 - _AS_FAST):
            best = cut
    return best


def _left_out_by_memory(split: Split, task: Task, device: int) -> LeftOut:
    name = task.devices[device].name
    if not split.can_hold_a_layer(device):
        return LeftOut(device=name, why=f"{name} cannot hold a single layer: left out.")
    return LeftOut(device=name, why=f"{name} has no place in any cut that fits: left out.")


def _left_out_by_speed(split: Split, task: Task, device: int, cuts: tuple[Cut, Cut]) -> LeftOut:
    """`cuts`: the one without it, and the best one with it."""
    name = task.devices[device].name
    without, with_it = cuts
    if not with_it:
        return _left_out_by_memory(split, task, device)
    slower = max(0.0, split.score(with_it) / split.score(without) - 1)
    how = slower_words(slower) if slower >= _AS_FAST else "no faster"
    return LeftOut(device=name, why=f"{name} makes it {how}: left out.", slower=slower)


def _idle(task: Task, cut: Cut) -> list[int]:
    used = {part.device for part in cut}
    return [device for device in range(len(task.devices)) if device not in used]


def _guessed(task: Task) -> list[str]:
    """Whose speed nobody has told."""
    return [device.name for device in task.devices if source_of(device) is SpeedSource.GUESSED]


def _in_numbers(task: Task, split: Split, cut: Cut, left_out: tuple[LeftOut, ...], why: tuple[str, ...]) -> Plan:
    throughput = split.speed.throughput(cut)
    return Plan(
        stages=tuple(_stage(task, split, part) for part in cut),
        left_out=left_out,
        prediction=Prediction(
            seconds_per_token=split.speed.token(cut),
            tokens_per_second=throughput.tokens_per_second,
            groups=throughput.groups,
            requests_in_a_group=throughput.requests_in_a_group,
            kv_tokens=_kv_tokens(task, split, cut),
        ),
        why=why,
    )


def _kv_tokens(task: Task, split: Split, cut: Cut) -> int:
    """The context times the concurrency at least: what the stage with the least room beyond that leaves."""
    rooms = [
        (need.kv + split.memory.room(part.device) - need.total) // ((part.stop - part.start) * task.model.kv_bytes)
        for part in cut
        if task.model.kv_bytes
        for need in (split.memory.need(part.start, part.stop),)
    ]
    return min(rooms, default=task.kv_tokens) // KV_BLOCK * KV_BLOCK


def _stage(task: Task, split: Split, part: Part) -> StagePlan:
    device = task.devices[part.device]
    need = split.memory.need(part.start, part.stop)
    return StagePlan(
        device=device.name,
        start=part.start,
        stop=part.stop,
        weight_bytes=need.weights,
        kv_bytes=need.kv,
        working_bytes=need.working,
        reserve_bytes=task.reserve_of(device),
        free_bytes=split.memory.room(part.device) - need.total,
        seconds=split.speed.stage(part, 1),
        speed=source_of(device),
    )


def _check_counts(task: Task, counts: Sequence[int]) -> None:
    told, layers = ",".join(map(str, counts)), task.model.layers
    if len(counts) != len(task.devices):
        raise LayersDoNotAddUp(
            f"Layers {told} are for {len(counts)} devices, and there are {len(task.devices)}; give each a number, 0 to "
            "leave it out."
        )
    if min(counts) < 0 or sum(counts) != layers:
        raise LayersDoNotAddUp(f"Layers {told} are {sum(counts)} together, and the model has {layers}; make them so.")


def _slower_by_hand(task: Task, split: Split, cut: Cut, by_itself: Plan) -> tuple[str, ...]:
    slower = split.score(cut) / split.score(_cut_of(task, by_itself)) - 1
    if slower < _AS_FAST:
        return ()
    return (f"The automatic split, {_words(task, by_itself)}, is better: this is {slower_words(slower)}.",)


def _words(task: Task, made: Plan) -> str:
    return reasons.counts_words(task, _cut_of(task, made))


def _cut_of(task: Task, made: Plan) -> Cut:
    numbers = {device.name: number for number, device in enumerate(task.devices)}
    return tuple(Part(numbers[stage.device], stage.start, stage.stop) for stage in made.stages)
