"""Memory that outlives its processes: segments in /dev/shm that engines map and only a clean exit removes.

vLLM's message queues are a few hundred megabytes, and a killed engine leaves them. Linux; only what belongs to this
user, was mapped by the engine, and is mapped by nobody any more is removed.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

_SEGMENTS = "/dev/shm/"  # noqa: S108 - not ours to choose

log = logging.getLogger(__name__)


def segments_of(pids: Iterable[int]) -> set[Path]:
    """What these processes have mapped now."""
    return {segment for pid in pids for segment in _mapped(pid)}


def remove_unused(segments: set[Path]) -> None:
    """Blocks for a while: it looks at every process."""
    if not segments:
        return
    used = segments_of(int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal())
    for segment in segments - used:
        with suppress(OSError):
            if segment.stat().st_uid == os.getuid():
                segment.unlink()
                log.info("removed %s, which an ended engine left", segment)


def _mapped(pid: int) -> Iterator[Path]:
    try:
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        at = line.find(_SEGMENTS)
        if at >= 0 and not line.endswith(" (deleted)"):
            yield Path(line[at:])
