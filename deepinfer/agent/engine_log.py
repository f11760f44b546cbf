"""What an engine printed: one file for this run, one for the run before it."""

from __future__ import annotations

import os
import re
from pathlib import Path

_TAIL_BYTES = 64 * 1024
_LONGEST_LINE = 400
_EXCEPTION = re.compile(r"^(\w+\.)*\w*(Error|Exception|Exit|Interrupt)\b")


def log_path(folder: Path, *, previous: bool = False) -> Path:
    return folder / ("log.1" if previous else "log")


def start_new_log(folder: Path) -> int:
    """Keep the last run's log as the previous one; answers a descriptor to append to."""
    current = log_path(folder)
    if current.exists():
        current.replace(log_path(folder, previous=True))
    return os.open(current, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


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
    """The line that tells most about how the run ended: its last exception line, else its last line."""
    try:
        with log_path(folder).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    named = [line for line in lines[-20:] if _EXCEPTION.match(line)]
    return (named or lines or [""])[-1][:_LONGEST_LINE]


def _byte_at(descriptor: int, position: int) -> bytes:
    return os.pread(descriptor, 1, position)


def _newlines_from_the_end(block: bytes) -> list[int]:
    return [at for at in range(len(block) - 1, -1, -1) if block[at] == 0x0A]
