"""Runs of the load program (load.c), and what it saw."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.fleet.until import RunEnded
from benchmarks.gateway.cores import starting_on

_PATIENCE_SECONDS = 60.0


@dataclass(frozen=True)
class Seen:
    """Times in seconds. `events` are those of streams, their [DONE] included."""

    seconds: float
    requests: int  # whole answers
    failed: int
    events: int
    whole_events: int  # of whole answers
    p50: float
    p99: float
    first_p50: float  # until a body's first byte
    first_p99: float
    answering: int  # answers that have begun at least
    ended_early: int  # of streams that were to be held
    longest_gap: float
    hung_up_at: float  # by the machine's monotonic clock


class Load:
    """The program, in a folder for the requests it sends, on cores of its own."""

    def __init__(self, program: Path, folder: Path, cores: frozenset[int]) -> None:
        self._program = program
        self._file = folder / "request"
        self._cores = cores

    def asks(self, port: int, request: bytes, connections: int, seconds: float) -> Seen:
        """Each connection again and again."""
        with self._running(port, request, connections, seconds) as process:
            return _told(process)

    @contextmanager
    def holding(self, port: int, request: bytes, connections: int, seconds: float) -> Iterator[Holding]:
        """Each connection one stream, open until the time is over."""
        with self._running(port, request, connections, seconds, "hold") as process:
            yield Holding(process)

    @contextmanager
    def _running(
        self, port: int, request: bytes, connections: int, seconds: float, *how: str
    ) -> Iterator[subprocess.Popen[str]]:
        self._file.write_bytes(request)
        command = [str(self._program), str(port), str(connections), str(seconds), str(self._file), *how]
        with starting_on(self._cores):
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


class Holding:
    """Streams that are open."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def is_running(self) -> bool:
        return self._process.poll() is None

    def seen(self) -> Seen:
        """After all have hung up."""
        return _told(self._process)


def _told(process: subprocess.Popen[str]) -> Seen:
    out, err = process.communicate(timeout=_PATIENCE_SECONDS)
    if process.returncode:
        raise RunEnded(f"The load ended: {err.strip()}.")
    return Seen(**json.loads(out))
