"""Compare-and-set: when somebody wrote first, look again and decide anew."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from deepinfer.etcd.backoff import Backoff
from deepinfer.fleet.errors import StoreConflict

TRIES = 10
T = TypeVar("T")


async def retrying(once: Callable[[], Awaitable[T]]) -> T:
    """Raises `StoreConflict` when that keeps happening."""
    backoff = Backoff(first=0.01, longest=0.3)
    for _ in range(TRIES - 1):
        try:
            return await once()
        except StoreConflict:
            await backoff.pause()  # or of many writers at once one would win each time, and most would never
    return await once()
