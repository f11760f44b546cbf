"""Before an engine starts: its devices are free of everything else, or it waits and says for what."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection

from deepinfer.agent.device_gate import EndThese, Free, Wait, next_step
from deepinfer.agent.device_holders import holders_of
from deepinfer.agent.engine_process import Mark
from deepinfer.agent.launcher import NativeLauncher

_LOOK_AGAIN_SECONDS = 1.0

log = logging.getLogger(__name__)


async def until_devices_are_free(
    devices: Collection[str],
    launcher: NativeLauncher,
    in_charge: Callable[[], frozenset[Mark]],
    tell: Callable[[Wait], None],
) -> None:
    """Left-overs of ours are ended on the way; what is not ours may make this wait for ever."""
    exclusive = [device for device in devices if device != "cpu"]
    loop = asyncio.get_running_loop()
    began = loop.time()
    while exclusive:
        holders = await asyncio.to_thread(holders_of, exclusive, launcher.locks, launcher.instance)
        match next_step(holders, in_charge(), loop.time() - began):
            case Free():
                return
            case EndThese(marks):
                await _end(launcher, marks)
            case Wait() as wait:
                tell(wait)
                await asyncio.sleep(_LOOK_AGAIN_SECONDS)  # no event tells that a device is free


async def _end(launcher: NativeLauncher, marks: Collection[Mark]) -> None:
    for process in launcher.running():
        if process.mark in marks:
            log.warning("ending %s (process %d): no replica's, and it holds a device", process.mark, process.pid)
            await process.kill()
