"""One process at a time makes a thing, whichever agent asked for it; a dead maker holds nothing."""

from __future__ import annotations

import asyncio
import fcntl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

_LOOK_SECONDS = 0.25  # a file lock tells nobody that it is free


@asynccontextmanager
async def exclusive(lock_file: Path, waiting: Callable[[], None]) -> AsyncIterator[int]:
    """Hold the lock during the block; gives its descriptor, so that a child can hold it beyond this process's death."""
    lock_file.parent.mkdir(parents=True, exist_ok=True)
    with lock_file.open("a") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                waiting()
                await asyncio.sleep(_LOOK_SECONDS)
        yield lock.fileno()
