"""What an engine says of itself, for the status: phase, message, endpoint, memory. Never its load or its cache.

Until it is ready every word is followed as it comes. From then on it is asked now and then: an engine's watch also
carries what its KV cache does, which is the router's business and would cost the agent work for every step. An engine
that was ready and does not answer any more, though its process is there, hangs.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from deepinfer.agent.launching import Mark
from deepinfer.engine_shim.client import EngineClient
from deepinfer.engine_shim.wire import ShimInfo, ShimPhase
from deepinfer.fleet.errors import DeepinferError, EngineFailed
from deepinfer.fleet.resources import Phase

_ASK_SECONDS = 5.0
_ANSWER_SECONDS = 3.0
_SILENT_TIMES, _SILENT_SECONDS = 3, 9.0  # both: neither a broken connection nor a pause of this process is a hang
_CONNECT_AGAIN_SECONDS = 0.2
_WORTH_TELLING = 0.1  # memory that changed by less is not written to the store again

_PHASES = {
    ShimPhase.STARTING: Phase.STARTING,
    ShimPhase.READY: Phase.READY,
    ShimPhase.DRAINING: Phase.DRAINING,
    ShimPhase.FAILED: Phase.FAILED,
}

log = logging.getLogger(__name__)


class NotThisEngine(DeepinferError):
    """Another engine answers on this engine's socket."""


class NoAnswer(DeepinferError):
    """The engine's process is there and does not answer."""


@dataclass(frozen=True)
class Sight:
    """What a status needs to know."""

    phase: Phase
    message: str = ""
    endpoint: str | None = None
    memory_bytes: int | None = None


@asynccontextmanager
async def connected(socket: Path) -> AsyncIterator[EngineClient]:
    """To the shim behind it; nothing is said yet."""
    client = EngineClient(f"unix:{socket}")
    try:
        yield client
    finally:
        await client.close()


async def sights(client: EngineClient, mark: Mark) -> AsyncGenerator[Sight, None]:
    """Changes only, over any broken connection, for ever. Raises `NotThisEngine` and `NoAnswer`."""
    loop = asyncio.get_running_loop()
    last: Sight | None = None
    misses, answered = 0, loop.time()
    while True:
        try:
            async with aclosing(_words(client)) as words:
                async for info in words:
                    misses, answered = 0, loop.time()
                    sight = _sight(info, mark, last)
                    if sight != last:
                        last = sight
                        yield sight
        except EngineFailed as error:  # its end is seen by its process, not here
            log.debug("engine %s does not answer: %s", mark, error)
            misses, silent = misses + 1, loop.time() - answered
            loaded = last is not None and last.phase is not Phase.STARTING  # loading may block it for long
            if loaded and misses >= _SILENT_TIMES and silent >= _SILENT_SECONDS:
                raise NoAnswer(f"It did not answer for {silent:.0f} s") from error
            await asyncio.sleep(_CONNECT_AGAIN_SECONDS)


async def _words(client: EngineClient) -> AsyncGenerator[ShimInfo, None]:
    info = await client.info(timeout_seconds=_ANSWER_SECONDS, wait_for_ready=True)
    yield info
    if info.phase is ShimPhase.STARTING:
        async for state in client.watch():
            yield await client.info()
            if state.phase is not ShimPhase.STARTING:
                break
    while True:
        await asyncio.sleep(_ASK_SECONDS)
        yield await client.info(timeout_seconds=_ANSWER_SECONDS)


def _sight(info: ShimInfo, mark: Mark, last: Sight | None) -> Sight:
    if (info.placement, info.epoch) != (mark.placement, mark.epoch):
        raise NotThisEngine(
            f"{info.placement} (epoch {info.epoch}) answers on the socket of {mark.placement} (epoch {mark.epoch})."
        )
    memory = info.memory_bytes or None
    if last and last.memory_bytes and memory and abs(memory / last.memory_bytes - 1) < _WORTH_TELLING:
        memory = last.memory_bytes
    return Sight(_PHASES[info.phase], info.message, info.endpoint or None, memory)
