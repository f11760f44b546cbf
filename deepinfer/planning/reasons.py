"""Why a cut is as it is, in sentences. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from deepinfer.planning.speed import Cut, SpeedSource, source_of
from deepinfer.planning.split import Split
from deepinfer.planning.task import Objective, Task
from deepinfer.planning.words import at_once, listed, slower_words

_WORTH_TELLING = 0.005


def by_memory(task: Task, cut: Cut, guessed: Sequence[str]) -> tuple[str, ...]:
    told = "Layers go by share of memory, as far as each device's memory beside its reserve allows."
    return (
        told if _is_in_order(cut) else f"{told} The order given has no room for that: {_order_words(task, cut)}.",
        _guess_words(guessed, "layers go by speed, and who only slows it down is left out"),
    )


def by_speed(task: Task, split: Split, cut: Cut, first: Cut) -> tuple[str, ...]:
    """`first` is the cut by memory alone."""
    sources = {source_of(device) for device in task.devices}
    measured, given = "measured speed", "memory bandwidth as given"
    speed = f"{measured} and {given}" if len(sources) > 1 else measured if SpeedSource.MEASURED in sources else given
    aims = {
        Objective.LATENCY: "the shortest time per token of a lone request",
        Objective.THROUGHPUT: f"the most tokens a second with {at_once(task.concurrency)}",
    }
    told = f"Layers go by {speed}, for {aims[task.aim]}."
    if not _is_in_order(cut):
        told += f" In another order than given: {_order_words(task, cut)}."
    if cut == first:
        return (told, "By share of memory they would lie the same.")
    slower = split.score(first) / split.score(cut) - 1
    if slower < _WORTH_TELLING:
        return (told,)
    return (told, f"By share of memory alone ({counts_words(task, first)}) it would be {slower_words(slower)}.")


def by_hand(guessed: Sequence[str]) -> tuple[str, ...]:
    told = ("Layers go as told by hand.",)
    return (*told, _guess_words(guessed, "the prediction means something")) if guessed else told


def counts_words(task: Task, cut: Cut) -> str:
    """In the devices' order: "5,13,14"."""
    counts = {part.device: part.stop - part.start for part in cut}
    words = ",".join(str(counts.get(device, 0)) for device in range(len(task.devices)))
    return words if _is_in_order(cut) else f"{words}, where {_order_words(task, cut)}"


def _is_in_order(cut: Cut) -> bool:
    order = [part.device for part in cut]
    return order == sorted(order)


def _order_words(task: Task, cut: Cut) -> str:
    return f"the pipeline goes {listed([task.devices[part.device].name for part in cut])}"


def _guess_words(guessed: Sequence[str], then: str) -> str:
    names = listed(guessed)
    return f"The speed of {names} is only guessed by kind; with bandwidth or a measured layer-ms for each, {then}."
