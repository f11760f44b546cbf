"""A process with all that it started: what they cost together, and their end."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.gateway.cores import starting_on
from deepinfer.fleet.die_with_parent import dying_with_me


@dataclass(frozen=True)
class ProcessTree:
    """`log` is what they print."""

    first: psutil.Process
    log: Path

    def cpu_seconds(self) -> float:
        """Spent so far by all their threads, in user and kernel mode, and by those that have ended."""
        return sum(map(_cpu_seconds, self._all()))

    def memory_bytes(self) -> int:
        """Pages that several share are divided among them, where the kernel tells."""
        return sum(map(_memory_bytes, self._all()))

    def is_running(self) -> bool:
        return bool(self.first.is_running() and self.first.status() != psutil.STATUS_ZOMBIE)

    def last_words(self) -> str:
        return self.log.read_text(errors="replace").strip()[-800:]

    def kill(self) -> None:
        for process in reversed(self._all()):
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def _all(self) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            return [self.first, *self.first.children(recursive=True)]
        return []


@contextmanager
def started(
    command: Sequence[str | Path], log: Path, cores: frozenset[int], environment: Mapping[str, str] | None = None
) -> Iterator[ProcessTree]:
    """Nothing is left of it after the block, nor when this process is killed."""
    with log.open("wb") as out, starting_on(cores):
        process = subprocess.Popen(
            dying_with_me([str(part) for part in command], "SIGKILL"),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env=environment,
            start_new_session=True,
        )
    tree = ProcessTree(psutil.Process(process.pid), log)
    try:
        yield tree
    finally:
        tree.kill()
        process.wait()


def _cpu_seconds(process: psutil.Process) -> float:
    with suppress(psutil.NoSuchProcess):
        spent = process.cpu_times()
        return float(spent.user + spent.system + spent.children_user + spent.children_system)
    return 0.0


def _memory_bytes(process: psutil.Process) -> int:
    with suppress(psutil.NoSuchProcess):
        try:
            return int(process.memory_full_info().pss)
        except (psutil.AccessDenied, AttributeError):
            return int(process.memory_info().rss)
    return 0
