"""Mirrors for tests, and a bound on waiting for them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from deepinfer.fleet.mirror import Mirror


async def until(mirror: Mirror, look: Callable[[], object], seconds: float = 20) -> None:
    """Wait for the mirror to become as it should be."""
    news = mirror.listener()
    async with asyncio.timeout(seconds):
        while not look():
            await news.wait()
            news.clear()
