"""What an engine printed: one file for this run, one for the run before it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

from deepinfer.agent.root_cause import last_error, root_cause, told_failure

_TAIL_BYTES = 64 * 1024
_END_BYTES = 2 * 1024 * 1024  # what a run's end may print
_LONGEST_LINE = 400


def log_path(folder: Path, *, previous: bool = False) -> Path:
    return folder / ("log.1" if previous else "log")


def start_new_log(folder: Path) -> int:
    """Keep the last run's log as the previous one; answers a descriptor to append to."""
    current = log_path(folder)
    if current.exists():
        current.replace(log_path(folder, previous=True))
    return os.open(current, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def appended_log(folder: Path) -> BinaryIO:
    """The log of this run, for one more that writes into it."""
    return log_path(folder).open("ab")


def offset_of_last_lines(path: Path, lines: int) -> int:
    """Where the last `lines` lines begin, found from the end; 0 lines means all."""
    if lines == 0:
        return 0
    with path.open("rb") as file:
        position = file.seek(0, os.SEEK_END)
        wanted = lines + 1  # the newline before the first wanted line; a last newline ends a line and begins none
        if position and _byte_at(file.fileno(), position - 1) != b"\n":
            wanted -= 1
        while position > 0:
            start = max(0, position - _TAIL_BYTES)
            block = os.pread(file.fileno(), position - start, start)
            for at in _newlines_from_the_end(block):
                wanted -= 1
                if wanted == 0:
                    return start + at + 1
            position = start
    return 0


def last_useful_line(folder: Path) -> str:
    """The line that tells most about how the run ended: one that names an error, else the last; "" without any."""
    lines = [line for line in _last_lines(folder) if line.strip()]
    return (root_cause(lines) or last_error(lines) or (lines[-1].strip() if lines else ""))[:_LONGEST_LINE]


def error_told(folder: Path) -> str:
    """Only a line that names an error; "" without one."""
    return (root_cause(_last_lines(folder)) or "")[:_LONGEST_LINE]


def failure_told(folder: Path) -> str | None:
    """What the shim said its engine failed of, if that is how the run ended."""
    told = told_failure(_last_lines(folder))
    return told and told[:_LONGEST_LINE]


def _last_lines(folder: Path) -> list[str]:
    try:
        with log_path(folder).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _END_BYTES))
            return file.read().decode(errors="replace").splitlines()
    except FileNotFoundError:
        return []


def _byte_at(descriptor: int, position: int) -> bytes:
    return os.pread(descriptor, 1, position)


def _newlines_from_the_end(block: bytes) -> list[int]:
    return [at for at in range(len(block) - 1, -1, -1) if block[at] == 0x0A]
