"""The server in the container as the shim serves it: from its first answer to its failure.

It may have been there for days: an agent starts its sidecar anew whenever it has to, and a server that is up is READY
with four questions.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from typing import Final

import psutil

from deepinfer.engine_shim.engines.container.api_server import ApiServer, ServedModel
from deepinfer.engine_shim.engines.container.completions import Completions
from deepinfer.engine_shim.engines.container.elsewhere import calls_go_to
from deepinfer.engine_shim.engines.container.figures import CAPACITY_NAMES, LOAD_NAMES, Capacity, capacity_of
from deepinfer.engine_shim.engines.container.health import Answer, Standing, after, failure
from deepinfer.engine_shim.engines.container.load_meter import LoadMeter
from deepinfer.engine_shim.engines.container.load_watch import LoadWatch
from deepinfer.engine_shim.engines.vllm.core_processes import cpu_seconds, resident_bytes
from deepinfer.engine_shim.engines.vllm.kv_subscription import follow
from deepinfer.engine_shim.engines.vllm.loading_progress import tell_progress
from deepinfer.engine_shim.kv_contents import KvContents
from deepinfer.engine_shim.served_engine import ServedEngine
from deepinfer.engine_shim.token_engine import EngineInfo, EngineLoad
from deepinfer.engine_shim.wire import GenerateDelta, GenerateRequest
from deepinfer.fleet.errors import EngineWillNotStart
from deepinfer.fleet.launch import ContainerServer, EngineLaunch

Progress = Callable[[str], None]

_LOADING_LOOK_SECONDS: Final = 0.5
_HEALTH_SECONDS: Final = 2.0
_DOUBT_SECONDS: Final = 0.5
"""After an answer that was not good; so a server that is gone is found as fast as by a look every second."""
_LONGEST_LOOK_SECONDS: Final = 8.0
"""A look that took longer tells that this process stood still too."""
_NAMES_EVERY: Final = 5
"""Adapters come and go by requests that pass the shim by; so many looks at the health later their names are known."""


async def load_container(launch: EngineLaunch, container: ContainerServer, progress: Progress) -> ServedEngine:
    """Waits for the server as long as it takes. `EngineWillNotStart` when it is not the one that was to be."""
    server = ApiServer(container.endpoint, container.api_key)
    try:
        models = await _loaded_models(server, launch, progress)
        _check_names(launch, models)
        page = await server.metrics((*LOAD_NAMES, *CAPACITY_NAMES))
        engine = ContainerEngine(launch, container, server, capacity_of(page or ""))
        engine.learn(models)
        await engine.look()
        return engine.served(await server.version())
    except BaseException:
        await server.close()
        raise


async def _loaded_models(server: ApiServer, launch: EngineLaunch, progress: Progress) -> tuple[ServedModel, ...]:
    """Once it is healthy. The agent has the deadline, and sees the container's end."""
    progress("starting the container's server")
    log = launch.log if launch.log is not None and launch.log.exists() else None
    telling = asyncio.create_task(tell_progress(log, progress), name="loading progress") if log else None
    try:
        while True:
            if await server.health() is Answer.FINE and (models := await server.models()) is not None:
                return models
            await asyncio.sleep(_LOADING_LOOK_SECONDS)
    finally:
        if telling is not None:
            telling.cancel()


def _check_names(launch: EngineLaunch, models: tuple[ServedModel, ...]) -> None:
    wanted = launch.served_names[0]
    if wanted not in (model.name for model in models):
        serves = ", ".join(repr(model.name) for model in models) or "no model"
        raise EngineWillNotStart(
            f"The container's server serves {serves}, and {wanted!r} was expected;"
            f" let it be started with --served-model-name {wanted}."
        )


class ContainerEngine:
    """What the shim asks of it. Everything is looked at from `broken` on, and until that ends."""

    def __init__(self, launch: EngineLaunch, container: ContainerServer, server: ApiServer, capacity: Capacity) -> None:
        self._launch = launch
        self._container = container
        self._server = server
        self._capacity = capacity
        self._models: tuple[ServedModel, ...] = ()
        self._members = _family(container.pid)
        self._kv = KvContents(time.time_ns())
        self._meter = LoadMeter(capacity.blocks)
        self._load_watch = LoadWatch(server, self._meter)
        self._generate = Completions(server.http, launch.served_names[0])

    def served(self, version: str) -> ServedEngine:
        return ServedEngine(
            info=lambda: self._info(version),
            app=calls_go_to(self._container.endpoint),
            generate=self._deltas,
            kv=self._kv,
            load=self._load,
            work_done=self._work_done,
            broken=self._broken,
            close=self._server.close,
            names=lambda: tuple(model.name for model in self._models),
            cpu_seconds=self._cpu_seconds if self._members else None,
            http_endpoint=self._container.endpoint,
            http_key=self._container.api_key.encode(),
            listen=self._load_watch.listen,
            idle=self._load_watch.idle,
        )

    async def look(self) -> None:
        """What already runs is known from READY on."""
        await self._load_watch.look()

    def learn(self, models: tuple[ServedModel, ...]) -> None:
        if models != self._models:
            self._models = models
            self._load_watch.tell()

    def _info(self, version: str) -> EngineInfo:
        wanted = self._launch.served_names[0]
        return EngineInfo(
            model=wanted,
            engine=self._launch.engine,
            engine_version=version,
            max_model_len=next((model.max_model_len for model in self._models if model.name == wanted), 0),
            kv_block_size=self._capacity.block_size,
            kv_blocks=self._capacity.blocks,
            dtype=self._launch.dtype,
            memory_bytes=resident_bytes(self._members),
        )

    def _load(self) -> EngineLoad:
        return self._meter.load

    def _work_done(self) -> int:
        """Without metrics nothing is ever known to have stalled: it counts by itself."""
        if not self._server.has_metrics:
            self._meter.worked()
        return self._meter.work_done

    def _cpu_seconds(self) -> float:
        return cpu_seconds(_family(self._container.pid))

    async def _deltas(self, request: GenerateRequest) -> AsyncGenerator[GenerateDelta, None]:
        self._load_watch.wake()
        async with aclosing(self._generate(request)) as deltas:
            async for delta in deltas:
                self._meter.worked()
                yield delta

    async def _broken(self) -> str:
        forget = self._kv.listen(lambda change: self._load_watch.wake())
        try:
            async with asyncio.TaskGroup() as tasks:
                looking = [tasks.create_task(self._load_watch.run(), name="load")]
                if self._container.kv_events is not None:
                    folder, grain = self._container.kv_events, self._capacity.block_size
                    events = follow(folder, self._kv, grain, worked=self._load_watch.ended)
                    looking.append(tasks.create_task(events, name="KV events"))
                reason = await self._unhealthy()
                for task in looking:
                    task.cancel()
            return reason
        finally:
            forget()

    async def _unhealthy(self) -> str:
        loop = asyncio.get_running_loop()
        standing, asked, looks = Standing(), loop.time(), 0
        while (reason := failure(standing)) is None:
            await asyncio.sleep(_HEALTH_SECONDS if standing.answer is Answer.FINE else _DOUBT_SECONDS)
            answer = await self._server.health()
            seconds = min(loop.time() - asked, _LONGEST_LOOK_SECONDS)
            standing, asked = after(standing, answer, seconds), loop.time()
            looks += 1
            if looks % _NAMES_EVERY == 0:
                await self._refresh_names()
        return reason

    async def _refresh_names(self) -> None:
        with suppress(EngineWillNotStart):  # it was fine once: whatever this is, its health decides
            models = await self._server.models()
            if models:
                self.learn(models)


def _family(pid: int | None) -> list[psutil.Process]:
    """The container's processes, where this process may see them. The kernel is asked about every one there is."""
    with suppress(psutil.Error):
        if pid is not None:
            first = psutil.Process(pid)
            return [first, *first.children(recursive=True)]
    return []
