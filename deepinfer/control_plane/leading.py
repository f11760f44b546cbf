"""Who leads the fleet decides what runs where; several `serve` take turns at it, and only the main process of each."""

from __future__ import annotations

import asyncio
import math
from functools import partial

from deepinfer.control_plane.scheduler.scheduler import Scheduler, Surroundings
from deepinfer.fleet.convergence import keep_converging
from deepinfer.fleet.leadership import Leadership, lead
from deepinfer.fleet.mirror import Mirror

SCHEDULER_REST_SECONDS = 0.05


async def keep_leading(mirror: Mirror, name: str, news: asyncio.Event, surroundings: Surroundings) -> None:
    """Not where the store is doubted: a leader that does nothing would keep others from leading. Never returns."""
    while True:
        await mirror.becomes(doubted=False)
        await lead(mirror.store, name, partial(_schedule, mirror, news, surroundings))


async def _schedule(mirror: Mirror, news: asyncio.Event, surroundings: Surroundings, leadership: Leadership) -> None:
    """Returns when the store is doubted."""
    scheduler = Scheduler(mirror, leadership, surroundings)
    loop, alarm = asyncio.get_running_loop(), None

    async def converge() -> None:
        nonlocal alarm
        if mirror.doubt:
            return  # the leadership is about to end
        await scheduler.converge()
        if alarm is not None:
            alarm.cancel()
        alarm = loop.call_at(scheduler.due, news.set) if math.isfinite(scheduler.due) else None

    async with asyncio.TaskGroup() as tasks:
        converging = tasks.create_task(keep_converging(converge, news, rest_seconds=SCHEDULER_REST_SECONDS))
        await mirror.becomes(doubted=True)
        converging.cancel()
