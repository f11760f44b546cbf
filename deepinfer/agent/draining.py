"""Letting an engine finish its running requests before it is ended."""

from __future__ import annotations

import asyncio
import logging

from deepinfer.engine_shim.client import EngineClient
from deepinfer.fleet.errors import EngineFailed

log = logging.getLogger(__name__)


async def drained(client: EngineClient, seconds: float, hurry: asyncio.Event) -> None:
    """Returns when nothing runs any more, the time is over, the engine does not answer, or `hurry` is set."""
    async with asyncio.TaskGroup() as tasks:
        draining = tasks.create_task(_drain(client, seconds))
        hurrying = tasks.create_task(hurry.wait())
        await asyncio.wait({draining, hurrying}, return_when=asyncio.FIRST_COMPLETED)
        draining.cancel()
        hurrying.cancel()


async def _drain(client: EngineClient, seconds: float) -> None:
    try:
        unfinished = await client.drain(seconds)
    except EngineFailed as error:
        log.warning("an engine could not be drained: %s", error)
    else:
        if unfinished:
            log.warning("the engine at %s is stopped with %d requests unfinished", client.target, unfinished)
