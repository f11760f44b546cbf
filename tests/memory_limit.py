"""A real memory cgroup with a limit, of whichever version the machine has. Needs root, as in CI."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class MemoryLimit:
    """A folder of the cgroup file system."""

    folder: Path

    def take(self, pid: int) -> None:
        """The process, and what it starts from now on, may use no more."""
        (self.folder / "cgroup.procs").write_text(str(pid))


@contextmanager
def memory_limit(limit_bytes: int) -> Iterator[MemoryLimit]:
    version_1 = _ROOT / "memory"
    parent = version_1 if version_1.is_dir() else _ROOT
    if parent is _ROOT:
        (parent / "cgroup.subtree_control").write_text("+memory")
    limited = MemoryLimit(parent / f"deepinfer-test-{os.getpid()}")
    limited.folder.mkdir()
    try:
        file = "memory.limit_in_bytes" if parent == version_1 else "memory.max"
        (limited.folder / file).write_text(str(limit_bytes))
        yield limited
    finally:
        _removed(limited.folder)


def _removed(folder: Path) -> None:
    """Its processes were killed; the kernel lets go of them a moment later."""
    deadline = time.monotonic() + 10
    while True:
        try:
            return folder.rmdir()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)  # the cgroup file system has no event for it
