"""One vLLM, loaded and served: AsyncLLM in this process, EngineCore and workers in their own.

Loading blocks for minutes, so it happens in a thread; the event loop answers the agent meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from argparse import Namespace
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from deepinfer.engine_shim.engines.vllm import environment
from deepinfer.engine_shim.engines.vllm.arguments import parsed
from deepinfer.engine_shim.engines.vllm.core_processes import (
    core_processes,
    cpu_seconds,
    family,
    first_end,
    resident_bytes,
)
from deepinfer.engine_shim.engines.vllm.imports import Vllm, called, imported
from deepinfer.engine_shim.engines.vllm.kv_subscription import follow, kv_events_flags
from deepinfer.engine_shim.engines.vllm.load_meter import LoadMeter, stat_logger
from deepinfer.engine_shim.engines.vllm.loading_progress import tell_progress
from deepinfer.engine_shim.engines.vllm.typed_requests import TypedRequests
from deepinfer.engine_shim.kv_contents import KvContents
from deepinfer.engine_shim.loading_thread import in_thread
from deepinfer.engine_shim.served_engine import ServedEngine
from deepinfer.engine_shim.token_engine import EngineInfo, EngineLoad
from deepinfer.fleet.engine_arguments import by_name
from deepinfer.fleet.launch import EngineLaunch

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Loaded:
    """What loading made, before it serves."""

    vllm: Vllm
    arguments: Namespace
    engine: Any  # AsyncLLM
    meter: LoadMeter
    processes: list[BaseProcess]
    kv_events: Path | None  # the folder of their sockets, where there are any


class VllmEngine:
    """What the shim asks of a running vLLM. Its parts end with `close`."""

    def __init__(self, loaded: Loaded, launch: EngineLaunch, kv: KvContents) -> None:
        self.kv = kv
        self._loaded = loaded
        self._launch = launch
        self._parts = AsyncExitStack()
        self._members = family(loaded.processes)  # EngineCore and the workers, as long as it serves

    async def start(self) -> Any:
        """vLLM's own application (a FastAPI) over the engine, started up as its server would do it."""
        vllm, engine, arguments = self._loaded.vllm, self._loaded.engine, self._loaded.arguments
        tasks = await engine.get_supported_tasks()
        known: dict[str, Any] = {
            "args": arguments,
            "engine_client": engine,
            "model_config": engine.model_config,
            "supported_tasks": tasks,
            "vllm_config": engine.vllm_config,
        }
        app = called(vllm["build_app"], known, vllm.version)
        await called(vllm["init_app_state"], known | {"state": app.state}, vllm.version)
        await engine.reset_mm_cache()  # the dummy data it was measured with
        await self._parts.enter_async_context(app.router.lifespan_context(app))
        if self._loaded.kv_events is not None:
            grain = self._loaded.engine.vllm_config.cache_config.block_size
            events = follow(self._loaded.kv_events, self.kv, grain, worked=self._loaded.meter.finished)
            self._parts.push_async_callback(_ended, asyncio.create_task(events, name="KV events"))
        environment.settle()
        return app

    def served(self, app: Any) -> ServedEngine:
        return ServedEngine(
            info=self.info,
            app=app,
            generate=TypedRequests(self._loaded.vllm, self._loaded.engine),
            kv=self.kv,
            load=self.load,
            close=self.close,
            names=lambda: tuple(app.state.openai_serving_models.lora_requests),
            work_done=lambda: self._loaded.meter.work_done,
            cpu_seconds=lambda: cpu_seconds(family(self._loaded.processes)),
            broken=lambda: first_end(self._loaded.processes),
        )

    def info(self) -> EngineInfo:
        config = self._loaded.engine.vllm_config
        return EngineInfo(
            model=self._launch.served_names[0],
            engine="vllm",
            engine_version=self._loaded.vllm.version,
            max_model_len=config.model_config.max_model_len,
            kv_block_size=config.cache_config.block_size,
            kv_blocks=self._kv_blocks,
            dtype=str(config.model_config.dtype).removeprefix("torch."),
            memory_bytes=resident_bytes(self._members),
            max_running=config.scheduler_config.max_num_seqs,
        )

    def load(self) -> EngineLoad:
        engine = self._loaded.engine
        waiting_tokens = getattr(engine, "get_num_queued_tokens", lambda: 0)()  # older versions do not count them
        unfinished = engine.output_processor.get_num_unfinished_requests()
        return self._loaded.meter.load(unfinished, waiting_tokens, self._kv_blocks)

    async def close(self) -> None:
        await self._parts.aclose()
        await asyncio.to_thread(self._loaded.engine.shutdown)  # it waits for its processes

    @property
    def _kv_blocks(self) -> int:
        return self._loaded.engine.vllm_config.cache_config.num_gpu_blocks or 0


async def load_vllm(launch: EngineLaunch, progress: Progress) -> ServedEngine:
    """`EngineWillNotStart` when this vLLM cannot run the launch; whatever vLLM raises when loading fails."""
    telling = asyncio.create_task(tell_progress(launch.log, progress)) if launch.log else None
    try:
        progress("importing vLLM")
        loaded = await in_thread(lambda: _load(launch))
        engine = VllmEngine(loaded, launch, KvContents(time.time_ns()))
        return engine.served(await engine.start())
    finally:
        if telling is not None:
            await _ended(telling)


def _load(launch: EngineLaunch) -> Loaded:
    """Blocking. AsyncLLM joins the event loop at its first use."""
    environment.prepare(launch.device)
    vllm = imported()
    given = by_name(launch.engine_args)
    # Without a prefix cache there is nothing to tell of.
    kv_events = launch.socket.with_suffix(".kv") if given.get("enable_prefix_caching", True) is not False else None
    arguments = parsed(vllm, launch, _own_flags(kv_events, given.get("data_parallel_size", 1)))
    engine_arguments = vllm["AsyncEngineArgs"].from_cli_args(arguments)
    usage = vllm["UsageContext"].OPENAI_API_SERVER
    config = engine_arguments.create_engine_config(usage_context=usage)
    meter = LoadMeter()
    engine = vllm["AsyncLLM"].from_vllm_config(
        vllm_config=config,
        usage_context=usage,
        stat_loggers=[stat_logger(vllm["StatLoggerBase"], meter)],
        enable_log_requests=engine_arguments.enable_log_requests,
        disable_log_stats=engine_arguments.disable_log_stats,
    )
    return Loaded(vllm, arguments, engine, meter, core_processes(), kv_events)


def _own_flags(kv_events: Path | None, data_parallel_ranks: int) -> Mapping[str, Any]:
    if kv_events is None:
        return {}
    return {"kv_events_config": kv_events_flags(kv_events, data_parallel_ranks=data_parallel_ranks)}


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
