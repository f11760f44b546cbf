"""KV contents that follow what an engine publishes, and a way to wait for them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from deepinfer.engine_shim.engines.vllm.kv_subscription import follow
from deepinfer.engine_shim.kv_contents import BlockKey, KvContents

GRAIN = 4
"""Tokens of a block."""


@asynccontextmanager
async def following(folder: Path) -> AsyncIterator[KvContents]:
    contents = KvContents(1)
    task = asyncio.create_task(follow(folder, contents, GRAIN))
    try:
        yield contents
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def until(contents: KvContents, condition: Callable[[], bool]) -> None:
    """Looks at every change."""
    changed = asyncio.Event()
    forget = contents.listen(lambda change: changed.set())
    try:
        async with asyncio.timeout(20):
            while not condition():
                await changed.wait()
                changed.clear()
    except TimeoutError:
        pytest.fail(f"not within 20 s; held: {keys(contents)}")
    finally:
        forget()


def keys(contents: KvContents) -> set[BlockKey]:
    return set(contents)
