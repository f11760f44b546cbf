"""Before an engine starts: its devices are free of everything else, or it waits and says for what."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection

import psutil

from deepinfer.agent.device_gate import EndThese, Free, Wait, next_step
from deepinfer.agent.device_holders import holders_of
from deepinfer.agent.launching import Launcher, Mark
from deepinfer.agent.simulated_devices import devices_below
from deepinfer.agent.workshop import Workshop
from deepinfer.fleet.spec import Backend

_LOOK_AGAIN_SECONDS = 1.0

log = logging.getLogger(__name__)


async def until_devices_are_free(devices: Collection[str], workshop: Workshop, tell: Callable[[Wait], None]) -> None:
    """Left-overs of ours are ended on the way; what is not ours may make this wait for ever."""
    exclusive = [device for device in devices if device != "cpu"]
    locks = devices_below(workshop.engines.parent)
    whose: dict[Mark, Backend] = {}

    def owner(process: psutil.Process) -> Mark | None:
        for backend, launcher in workshop.launchers.items():
            if mark := launcher.owner(process):
                whose[mark] = backend
                return mark
        return None

    loop = asyncio.get_running_loop()
    began = loop.time()
    while exclusive:
        holders = await asyncio.to_thread(holders_of, exclusive, locks, owner)
        match next_step(holders, workshop.in_charge(), loop.time() - began):
            case Free():
                return
            case EndThese(marks):
                # Only who runs them is asked: this must not need a Docker that is not there.
                await _end([workshop.launchers[backend] for backend in {whose[mark] for mark in marks}], marks)
            case Wait() as wait:
                tell(wait)
                await asyncio.sleep(_LOOK_AGAIN_SECONDS)  # no event tells that a device is free


async def _end(launchers: Collection[Launcher], marks: Collection[Mark]) -> None:
    for launcher in launchers:
        for engine in await launcher.running():
            if engine.mark in marks:
                log.warning("ending %s (process %d): no replica's, and it holds a device", engine.mark, engine.pid)
                await engine.kill()
