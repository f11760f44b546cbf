"""What a shim says of itself, and who wants to hear of changes. The truth that GetInfo and WatchState tell."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from deepinfer.engine_shim.in_flight import InFlight
from deepinfer.engine_shim.pipeline_door import PipelineDoor
from deepinfer.engine_shim.prompt_files import PromptFiles, prompt_files
from deepinfer.engine_shim.served_engine import ServedEngine
from deepinfer.engine_shim.token_engine import EngineInfo, EngineLoad
from deepinfer.engine_shim.wire import ShimInfo, ShimPhase
from deepinfer.fleet.launch import EngineLaunch

_STILL_SECONDS: Final = 0.9
"""Two looks of the stall watch."""


class ShimStatus:
    """Phase, message and, from READY on, the engine."""

    def __init__(self, launch: EngineLaunch) -> None:
        self.boot_epoch = time.time_ns()
        self.phase = ShimPhase.STARTING
        self.message = "starting"
        self.endpoint = ""
        self.call_endpoint = ""
        self.call_key = b""
        self.engine: ServedEngine | None = None
        self.prompt_digest = ""
        self.pipeline = PipelineDoor() if launch.pipeline else None
        self.in_flight = InFlight()
        self._still_seconds = 0.0
        self._launch = launch
        self._listeners: list[Callable[[], None]] = []
        self._mourners: list[Callable[[str], None]] = []

    def info(self) -> ShimInfo:
        known = ShimInfo(
            placement=self._launch.placement,
            epoch=self._launch.epoch,
            phase=self.phase,
            message=self.message,
            endpoint=self.endpoint,
            pid=os.getpid(),
            engine=self._launch.engine,
            served_names=self.names(),
            call_endpoint=self.call_endpoint,
            call_key=self.call_key,
            prompt_digest=self.prompt_digest,
        )
        if self.engine is None:
            return known
        if self.engine.http_endpoint:
            known = replace(known, http_endpoint=self.engine.http_endpoint, call_key=self.engine.http_key)
        return _with_engine(known, self.engine.info())

    def names(self) -> tuple[str, ...]:
        """What a request's "model" may say: the launch's names, then those the engine serves besides now."""
        own = self.engine.names() if self.engine is not None and self.engine.names is not None else ()
        return tuple(dict.fromkeys((*self._launch.served_names, *own)))

    def prompt_files(self) -> PromptFiles | None:
        """As they lie on the disk now. Blocks."""
        return prompt_files(self._launch)

    def load(self) -> EngineLoad:
        load = EngineLoad() if self.engine is None else self.engine.load()
        return replace(load, stalled_seconds=self._still_seconds) if self._still_seconds else load

    def stands_still(self, seconds: float) -> None:
        """For so long the engine has computed nothing, with work in hand. Short ones are nothing to tell."""
        seconds = seconds if seconds >= _STILL_SECONDS else 0.0
        if seconds != self._still_seconds:
            self._still_seconds = seconds
            self.touch()

    def unfinished(self) -> int:
        """How many requests run, by whatever way they came."""
        past = self.load() if self.engine is not None and self.engine.idle is not None else EngineLoad()
        return max(self.in_flight.count, past.running + past.waiting)

    async def idle(self) -> None:
        """Returns when nothing is unfinished."""
        await self.in_flight.none()
        if self.engine is not None and self.engine.idle is not None:
            await self.engine.idle()

    def progress(self, message: str) -> None:
        """Of loading. What is loaded later, while it serves, is no start."""
        if self.phase is ShimPhase.STARTING:
            self._become(ShimPhase.STARTING, message)

    def ready(self, engine: ServedEngine) -> None:
        self.engine = engine
        if engine.listen is not None:
            engine.listen(self.touch)
        self._become(ShimPhase.READY, "")

    def drain(self) -> None:
        if self.phase is not ShimPhase.FAILED:
            self._become(ShimPhase.DRAINING, "finishing what runs")

    def fail(self, message: str) -> None:
        """Whatever runs is told at once, and does not come to an end by itself."""
        self._become(ShimPhase.FAILED, message)
        for mourner in tuple(self._mourners):
            mourner(message)

    def touch(self) -> None:
        """The load may have changed."""
        for listener in self._listeners:
            listener()

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call `listener` at every change from now on; the answer ends it."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def when_failed(self, mourner: Callable[[str], None]) -> Callable[[], None]:
        """Call `mourner` with the reason when the engine fails; the answer ends it."""
        self._mourners.append(mourner)
        return lambda: self._mourners.remove(mourner)

    def _become(self, phase: ShimPhase, message: str) -> None:
        self.phase, self.message = phase, message
        self.touch()


def _with_engine(info: ShimInfo, engine: EngineInfo) -> ShimInfo:
    return replace(
        info,
        engine_version=engine.engine_version,
        max_model_len=engine.max_model_len,
        kv_block_size=engine.kv_block_size,
        kv_blocks=engine.kv_blocks,
        dtype=engine.dtype,
        memory_bytes=engine.memory_bytes,
        max_running=engine.max_running,
    )
