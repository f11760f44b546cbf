"""Whether a node runs out of something. Pure: what was measured in, sentences out.

What has become short stays so until it is well above its limit again: a node at the edge does not take and refuse by
turns. Its sentence stays as it was first told, so that the node's record is not written with every measurement.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

_RELIEF = 1.5  # times the limit
_MOST_FILES_NEEDED = 10_000

Pressure = Mapping[str, str]
"""What is short, by name, each with its sentence."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Of what is left; below it is short. 0: never."""

    memory_share: float
    disk_share: float
    disk_bytes: int  # enough on any disk, however large


@dataclass(frozen=True, slots=True)
class Memory:
    """Of the machine, or of a cgroup that holds less."""

    name: str
    free: int
    total: int


@dataclass(frozen=True, slots=True)
class Disk:
    """One file system, by a folder on it."""

    folder: str
    free: int
    total: int
    free_files: int = 0
    total_files: int = 0  # 0: as many as fit
    trouble: str = ""  # why nothing can be written at all


@dataclass(frozen=True, slots=True)
class _Stock:
    name: str
    free: int
    least: float
    sentence: str


def pressure(memories: Iterable[Memory], disks: Iterable[Disk], limits: Limits, before: Pressure) -> Pressure:
    """What is short now; `before` is what was."""
    stocks = [_memory(memory, limits) for memory in memories]
    stocks += [stock for disk in disks for stock in _disk(disk, limits)]
    return {stock.name: before.get(stock.name, stock.sentence) for stock in stocks if _is_short(stock, before)}


def _is_short(stock: _Stock, before: Pressure) -> bool:
    return stock.free < stock.least * (_RELIEF if stock.name in before else 1)


def _memory(memory: Memory, limits: Limits) -> _Stock:
    share = 100 * memory.free / memory.total
    sentence = f"{memory.name}: {share:.0f} % of {_size(memory.total)} left"
    return _Stock(memory.name, memory.free, limits.memory_share * memory.total, sentence)


def _disk(disk: Disk, limits: Limits) -> list[_Stock]:
    if disk.trouble:
        return [_Stock(f"trouble {disk.folder}", 0, 1, f"disk: {disk.folder} {disk.trouble}")]
    least = min(limits.disk_share * disk.total, limits.disk_bytes)
    least_files = min(limits.disk_share * disk.total_files, _MOST_FILES_NEEDED)
    room = f"disk: {_size(disk.free)} of {_size(disk.total)} left at {disk.folder}"
    files = f"disk: room for {disk.free_files:,} of {disk.total_files:,} files left at {disk.folder}"
    return [
        _Stock(f"disk {disk.folder}", disk.free, least, room),
        _Stock(f"files {disk.folder}", disk.free_files, least_files, files),
    ]


def _size(count: int) -> str:
    return f"{count / (1 << 30):.1f} GiB" if count >= 1 << 30 else f"{count / (1 << 20):.1f} MiB"
