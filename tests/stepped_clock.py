"""A clock that was set: what the kernel tells some threads and processes of the time of the boot. Root may."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

_NEW_MOUNTS, _BIND, _PRIVATE = 0x00020000, 0x1000, 0x00044000
_libc = ctypes.CDLL(None, use_errno=True)


def stat_after_step(seconds: int) -> str:
    """What /proc/stat would say if the clock were set so far ahead of the true time."""
    lines = Path("/proc/stat").read_text().splitlines()
    moved = [f"btime {int(line.split()[1]) + seconds}" if line.startswith("btime ") else line for line in lines]
    return "\n".join(moved) + "\n"


def own_mounts() -> None:
    """From now on this thread's mounts are its own, and those of what it starts."""
    _checked(_libc.unshare(_NEW_MOUNTS))
    _checked(_libc.mount(None, b"/", None, _PRIVATE, None))


def asked_after_step(seconds: int, folder: Path, ask: Callable[[], T]) -> T:
    """The answer of `ask`, called where the clock was set."""
    stat = folder / "stat-after-step"
    stat.write_text(stat_after_step(seconds))

    def there() -> T:
        own_mounts()
        _checked(_libc.mount(os.fsencode(stat), b"/proc/stat", None, _BIND, None))
        return ask()

    with ThreadPoolExecutor(1) as threads:
        return threads.submit(there).result()


def _checked(answer: int) -> None:
    if answer:
        raise OSError(ctypes.get_errno(), f"cannot make mounts of its own: {os.strerror(ctypes.get_errno())}")
