"""Compare-and-set: when somebody wrote first, look again and decide anew."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from deepinfer.fleet.errors import StoreConflict

TRIES = 5
T = TypeVar("T")


async def retrying(once: Callable[[], Awaitable[T]]) -> T:
    """Raises `StoreConflict` when that keeps happening."""
    for _ in range(TRIES - 1):
        try:
            return await once()
        except StoreConflict:
            continue
    return await once()
