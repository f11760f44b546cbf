"""Whether a process is still there, as anybody but its parent sees it."""

from __future__ import annotations

import psutil


def is_alive(pid: int) -> bool:
    """One that has ended and waits for its parent to ask is not; who that is depends on the machine."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
