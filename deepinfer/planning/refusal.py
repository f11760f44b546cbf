"""Why a task cannot be: which device lacks how much, and what would fit instead. Pure."""

from __future__ import annotations

from collections.abc import Callable

from deepinfer.fleet.resource import Record
from deepinfer.fleet.sizes import size
from deepinfer.planning.memory import Memory, Need
from deepinfer.planning.speed import Cut
from deepinfer.planning.split import Split
from deepinfer.planning.task import KV_BLOCK, Task
from deepinfer.planning.words import at_once, layers_words


class Shortfall(Record):
    """A device that its share of the layers does not fit on."""

    device: str
    start: int
    stop: int
    needed_bytes: int
    offered_bytes: int

    @property
    def missing_bytes(self) -> int:
        return self.needed_bytes - self.offered_bytes


class Refusal(Record):
    """There is no plan."""

    sentences: tuple[str, ...]
    shortfalls: tuple[Shortfall, ...] = ()
    fitting_context: int | None = None  # at the concurrency asked for
    fitting_concurrency: int | None = None  # at the context asked for


def refusal(task: Task, cut: Cut) -> Refusal:
    """`cut` is how the layers would lie if everything fitted."""
    if not task.devices:
        return Refusal(sentences=("There is no device to plan for; name some with --device, or start a worker.",))
    if task.context > task.model.longest_context:
        return _too_long(task)
    memory = Memory(task)
    short = shortfalls(task, memory, cut)
    context = _most(task.context // KV_BLOCK, lambda blocks: _fits(task, context=blocks * KV_BLOCK)) * KV_BLOCK
    concurrency = _most(task.concurrency - 1, lambda requests: _fits(task, concurrency=requests))
    words = _fitting_words(task, context, concurrency)
    told = (_whole_words(task, memory, cut), *map(_shortfall_words, short), words or _alone_words(task))
    return Refusal(
        sentences=told, shortfalls=short, fitting_context=context or None, fitting_concurrency=concurrency or None
    )


def refusal_by_hand(task: Task, cut: Cut, instead: str) -> Refusal:
    """`instead`: the automatic split, which fits."""
    short = shortfalls(task, Memory(task), cut)
    told = (*map(_shortfall_words, short), f"The automatic split, {instead}, fits.")
    return Refusal(sentences=told, shortfalls=short)


def shortfalls(task: Task, memory: Memory, cut: Cut) -> tuple[Shortfall, ...]:
    return tuple(
        Shortfall(
            device=task.devices[part.device].name,
            start=part.start,
            stop=part.stop,
            needed_bytes=memory.need(part.start, part.stop).total,
            offered_bytes=max(0, memory.room(part.device)),
        )
        for part in cut
        if not memory.fits(part.device, part.start, part.stop)
    )


def _too_long(task: Task) -> Refusal:
    longest = task.model.longest_context
    sentence = f"The model takes {longest:,} tokens at most, and {task.context:,} are asked for; ask for no more."
    return Refusal(sentences=(sentence,), fitting_context=longest)


def _fits(task: Task, **changes: int) -> bool:
    return bool(Split(task.model_copy(update=changes)).by_memory())


def _most(limit: int, fits: Callable[[int], bool]) -> int:
    """The largest number up to the limit that fits; 0 if 1 does not."""
    least, most = 0, limit
    while least < most:
        middle = (least + most + 1) // 2
        least, most = (middle, most) if fits(middle) else (least, middle - 1)
    return least


def _whole_words(task: Task, memory: Memory, cut: Cut) -> str:
    needs = [memory.need(part.start, part.stop) for part in cut]
    whole = Need(*(sum(getattr(need, name) for need in needs) for name in ("weights", "kv", "working")))
    offered = sum(max(0, memory.room(device)) for device in range(len(task.devices)))
    parts = f"weights {size(whole.weights)}, KV {size(whole.kv)}, working memory {size(whole.working)}"
    needed = f"{task.context:,} tokens for {at_once(task.concurrency)} need {size(whole.total)} ({parts})"
    if whole.total > offered:
        there = f"the devices offer {size(offered)} beside their reserve; {size(whole.total - offered)} are missing"
        return f"The model does not fit: {needed}, and {there}."
    return f"The model does not fit: {needed}; the devices offer {size(offered)}, but no cut between layers fits them."


def _shortfall_words(short: Shortfall) -> str:
    return (
        f"{short.device} lacks {size(short.missing_bytes)}: its share, {layers_words(short.start, short.stop)}, needs "
        f"{size(short.needed_bytes)}, and it offers {size(short.offered_bytes)} beside its reserve."
    )


def _fitting_words(task: Task, context: int, concurrency: int) -> str:
    """Empty where changing one of the two does not help."""
    ways = [f"{context:,} tokens for {at_once(task.concurrency)}"] if context else []
    ways += [f"{task.context:,} tokens for {at_once(concurrency)}"] if concurrency else []
    return f"What would fit: {', or '.join(ways)}." if ways else ""


def _alone_words(task: Task) -> str:
    alone = task.model_copy(update={"concurrency": 1})
    context = _most(task.context // KV_BLOCK, lambda blocks: _fits(alone, context=blocks * KV_BLOCK)) * KV_BLOCK
    if context:
        return f"What would fit: {context:,} tokens for one request at a time."
    return "Its weights alone do not fit; add a device, or take a smaller model or dtype."
