"""Which engines' processes lived, seen from outside: looked at many times a second while something is broken."""

from __future__ import annotations

import os
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Self

from deepinfer.agent.launching import Mark
from deepinfer.agent.native.engine_process import MARK

_LOOK_SECONDS = 0.1  # the kernel tells nobody that a process was born


class Sightings:
    """Of the shims that run in one home's name, while its block runs."""

    def __init__(self, home: Path) -> None:
        self.pids: dict[str, list[int]] = defaultdict(list)  # placement id -> every shim it had, in order
        self.doubles: list[str] = []
        self._home = f"XDG_DATA_HOME={home}".encode()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._look()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(10)
        self._look()

    def _run(self) -> None:
        while not self._stop.wait(_LOOK_SECONDS):
            self._look()

    def _look(self) -> None:
        living: dict[str, int] = {}
        for pid, mark in self._shims():
            if pid not in self.pids[mark.placement]:
                self.pids[mark.placement].append(pid)
            first = living.setdefault(mark.placement, pid)
            if first != pid and _is_shim(first) and _is_shim(pid):  # one may have ended while we looked
                self.doubles.append(f"{mark.placement} ran as {first} and as {pid} at the same time")

    def _shims(self) -> Iterator[tuple[int, Mark]]:
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and (mark := self._mark(entry)) is not None and _is_shim(int(entry.name)):
                yield int(entry.name), mark

    def _mark(self, process: Path) -> Mark | None:
        with suppress(OSError):
            variables = (process / "environ").read_bytes().split(b"\0")
            if self._home in variables:
                prefix = f"{MARK}=".encode()
                marks = [v.removeprefix(prefix).decode() for v in variables if v.startswith(prefix)]
                return Mark.parse(marks[0]) if marks else None
        return None


def _is_shim(pid: int) -> bool:
    """It leads its session, and has not ended."""
    with suppress(OSError):
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state != "Z" and os.getsid(pid) == pid
    return False
