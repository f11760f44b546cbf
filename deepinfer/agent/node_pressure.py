"""What this node has left of memory and disk, looked at every few seconds: the kernel tells neither by an event."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from deepinfer.agent.native.memory_cgroup import memory_cgroup_of
from deepinfer.agent.pressure import Disk, Limits, Memory, Pressure, pressure

_LOOK_SECONDS = 5.0

log = logging.getLogger(__name__)


@dataclass
class NodePressure:
    """`written`: folders that this node needs to write to; `filled`: those it only fills."""

    written: tuple[Path, ...]
    filled: tuple[Path, ...]
    limits: Limits
    short: Pressure = field(default_factory=dict)

    @property
    def sentences(self) -> tuple[str, ...]:
        return tuple(self.short.values())

    def look(self) -> None:
        """May take a moment: a disk may be far away."""
        disks = [disk_of(folder, must_write=folder in self.written) for folder in self._folders()]
        self.short = pressure(_memories(), disks, self.limits, self.short)

    async def changes(self) -> AsyncIterator[tuple[str, ...]]:
        """The sentences, whenever they are others."""
        while True:
            before = self.sentences
            await asyncio.sleep(_LOOK_SECONDS)
            await asyncio.to_thread(self.look)
            if self.sentences != before:
                log.warning("this node's pressure is now: %s", "; ".join(self.sentences) or "none")
                yield self.sentences

    def _folders(self) -> Iterable[Path]:
        """One for each file system."""
        found: dict[int | Path, Path] = {}
        for folder in (*self.written, *self.filled):
            found.setdefault(_file_system(folder), folder)
        return found.values()


def disk_of(folder: Path, *, must_write: bool) -> Disk:
    """The file system that it lies on, or will once it is made."""
    try:
        seen = os.statvfs(_nearest(folder))
    except OSError as error:
        return Disk(str(folder), 0, 0, trouble=f"cannot be looked at ({error.strerror})")
    trouble = "can only be read" if must_write and seen.f_flag & os.ST_RDONLY else ""
    free, total = seen.f_bavail * seen.f_frsize, seen.f_blocks * seen.f_frsize
    return Disk(str(folder), free, total, seen.f_favail, seen.f_files, trouble)


def _memories() -> list[Memory]:
    machine = psutil.virtual_memory()
    own = memory_cgroup_of(os.getpid())
    rooms = own.rooms() if own is not None else ()
    return [
        Memory("memory", machine.available, machine.total),
        *(Memory(f"memory of {room.cgroup}", room.free, room.limit) for room in rooms),
    ]


def _file_system(folder: Path) -> int | Path:
    """What only folders of the same one have in common."""
    try:
        return _nearest(folder).stat().st_dev
    except OSError:
        return folder  # it will be told what is wrong with it


def _nearest(folder: Path) -> Path:
    """It, or what is there of the way to it."""
    return next((path for path in (folder, *folder.parents) if os.path.lexists(path)), Path("/"))
