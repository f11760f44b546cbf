"""Waiting for what other processes do, woken by their news, with progress on stderr."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable

from deepinfer.fleet.errors import DeepinferError

_PROGRESS_SECONDS = 5.0


class RunEnded(DeepinferError):
    """The run cannot go on: something did not happen in time, or was refused."""


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


async def until(holds: Callable[[], bool], news: asyncio.Event, seconds: float, progress: Callable[[], str]) -> float:
    """When `holds` was first seen to be true, by the monotonic clock. Says every 5 s how far it is. Raises `RunEnded`
    after `seconds`."""
    began = told = time.monotonic()
    while not holds():
        now = time.monotonic()
        if now - began > seconds:
            raise RunEnded(f"Not within {seconds:g} s: {progress()}.")
        if now - told >= _PROGRESS_SECONDS:
            told = now
            say(f"  {now - began:5.1f} s: {progress()}")
        news.clear()
        try:
            async with asyncio.timeout(1.0):
                await news.wait()
        except TimeoutError:
            continue
    return time.monotonic()
