"""Whether the kernel ended a process for its memory: a SIGKILL alone does not tell. Linux, cgroups of version 1 and 2.

The counters are of a cgroup, not of a process, so one that rose while an engine died is taken for that engine's. Where
there is no memory cgroup nothing is known.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_SAME_DEATH_SECONDS = 5.0  # an engine of several processes is killed one by one
_NO_LIMIT = 1 << 60  # bytes; version 1 writes "none" as nearly 2**63

log = logging.getLogger(__name__)


_LIMIT_FILES = {  # of each version: the limit, what is used of it, and how much of that is files
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}


@dataclass(frozen=True)
class MemoryRoom:
    """What one limit leaves."""

    cgroup: str
    free: int
    limit: int


@dataclass(frozen=True)
class MemoryCgroup:
    """One process's."""

    path: str  # as /proc names it
    folder: Path
    root: Path  # where the hierarchy is mounted
    version: int

    def kills(self) -> int:
        """By the kernel, for want of memory, since the cgroup was made."""
        file = "memory.events" if self.version == 2 else "memory.oom_control"
        fields = dict(line.split() for line in _text(self.folder / file).splitlines())
        return int(fields.get("oom_kill", 0))

    def limit_bytes(self) -> int | None:
        """The lowest limit up to the root; None where only the machine limits it."""
        file = "memory.max" if self.version == 2 else "memory.limit_in_bytes"
        texts = [_text(folder / file).strip() for folder in (self.folder, *self.folder.parents) if self._holds(folder)]
        limits = [int(text) for text in texts if text.isdigit() and int(text) < _NO_LIMIT]
        return min(limits, default=None)

    def rooms(self) -> list[MemoryRoom]:
        """What each limit up to the root leaves. Files that the kernel only keeps in memory make way."""
        limit, used, kept = _LIMIT_FILES[self.version]
        found = []
        for folder in (self.folder, *self.folder.parents):
            text = _text(folder / limit).strip() if self._holds(folder) else ""
            if text.isdigit() and int(text) < _NO_LIMIT:
                files = dict(line.split() for line in _text(folder / "memory.stat").splitlines())
                taken = int(_text(folder / used) or 0) - int(files.get(kept, 0))
                name = "/" if folder == self.root else f"/{folder.relative_to(self.root)}"
                found.append(MemoryRoom(name, int(text) - taken, int(text)))
        return found

    def _holds(self, folder: Path) -> bool:
        return folder.is_relative_to(self.root)


class OutOfMemoryKills:
    """Remembers the counters, so that each rise is told once. One per agent."""

    def __init__(self) -> None:
        self._known: dict[Path, int] = {}
        self._rose_at: dict[Path, float] = {}

    def remember(self, pid: int) -> MemoryCgroup | None:
        """The cgroup that a living process is in now."""
        cgroup = memory_cgroup_of(pid)
        if cgroup is not None:
            self._look(cgroup)
        return cgroup

    def reason(self, cgroup: MemoryCgroup | None) -> str | None:
        """Why the engine that was in it died just now, if it was for its memory."""
        if cgroup is None:
            return None
        self._look(cgroup)
        if time.monotonic() - self._rose_at.get(cgroup.folder, float("-inf")) > _SAME_DEATH_SECONDS:
            return None
        limit = cgroup.limit_bytes()
        where = "the whole machine's" if limit is None else f"limit {limit / (1 << 30):.1f} GiB"
        return f"out of memory: the kernel killed it (memory cgroup {cgroup.path}, {where})"

    def _look(self, cgroup: MemoryCgroup) -> None:
        kills = cgroup.kills()
        if kills > self._known.setdefault(cgroup.folder, kills):
            self._known[cgroup.folder] = kills
            self._rose_at[cgroup.folder] = time.monotonic()


def memory_cgroup_of(pid: int, proc: Path = Path("/proc")) -> MemoryCgroup | None:
    """None where there is none, or the process has ended."""
    for version, path in _paths(_text(proc / str(pid) / "cgroup")):
        for root, mounted in _mounts(_text(proc / "self/mountinfo"), version):
            below = path.removeprefix(root) if root != "/" else path
            folder = mounted / below.lstrip("/")
            if (folder / ("memory.events" if version == 2 else "memory.oom_control")).exists():
                return MemoryCgroup(path, folder, mounted, version)
    return None


def _paths(cgroups: str) -> Iterator[tuple[int, str]]:
    """Of the memory controller: in a mixed setup version 1 has it."""
    lines = [line.split(":", 2) for line in cgroups.splitlines() if line.count(":") >= 2]
    yield from ((1, path) for _, controllers, path in lines if "memory" in controllers.split(","))
    yield from ((2, path) for number, controllers, path in lines if (number, controllers) == ("0", ""))


def _mounts(mountinfo: str, version: int) -> Iterator[tuple[str, Path]]:
    """Which part of a hierarchy is mounted, and where."""
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.partition(" ")
        fields = before.split()
        if (kind == "cgroup2" and version == 2) or (
            kind == "cgroup" and version == 1 and "memory" in options.split()[-1].split(",")
        ):
            yield fields[3], Path(fields[4])


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError as error:
        log.debug("%s cannot be read: %s", file, error)
        return ""
