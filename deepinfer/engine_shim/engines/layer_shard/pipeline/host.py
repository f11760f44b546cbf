"""The process that hosts a stage, as its shim serves it: it takes no requests, but orders of a replica's head."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncGenerator
from pathlib import Path

import psutil
import torch
import transformers

from deepinfer.engine_shim.engines.layer_shard.capacity import limits_of
from deepinfer.engine_shim.engines.layer_shard.options import Options
from deepinfer.engine_shim.engines.layer_shard.pipeline.handshake import Secret
from deepinfer.engine_shim.engines.layer_shard.pipeline.served_stage import Capacity, ServedStage
from deepinfer.engine_shim.engines.layer_shard.schedule import BLOCK
from deepinfer.engine_shim.engines.layer_shard.stage import Source, Stage, build_stage
from deepinfer.engine_shim.kv_contents import KvContents
from deepinfer.engine_shim.loading_thread import in_thread
from deepinfer.engine_shim.openai_app.responses import send_error
from deepinfer.engine_shim.pipeline_door import PipelineDoor
from deepinfer.engine_shim.served_engine import Receive, Scope, Send, ServedEngine
from deepinfer.engine_shim.token_engine import EngineInfo, EngineLoad
from deepinfer.engine_shim.wire import GenerateDelta, GenerateRequest
from deepinfer.fleet.errors import EngineWillNotStart, InvalidRequest
from deepinfer.fleet.launch import EngineLaunch
from deepinfer.planning.model_files import shape_of_folder
from deepinfer.planning.model_shape import CannotBePlanned


async def host_of_a_stage(launch: EngineLaunch, folder: Path, options: Options, door: PipelineDoor) -> ServedEngine:
    """Raises a `LayerShardError` where the model cannot be cut into stages, `OSError` where it cannot listen."""
    if launch.pipeline is None:
        raise EngineWillNotStart("The launch says nothing of a pipeline.")
    try:
        shape = await in_thread(lambda: shape_of_folder(folder, launch.dtype))
    except CannotBePlanned as error:
        raise EngineWillNotStart(str(error)) from error
    threads = options.threads or psutil.cpu_count(logical=False) or 1
    torch.set_num_threads(threads)

    def build(layers: range) -> tuple[Stage, Capacity]:
        stage = build_stage(Source(folder, layers, options.device, options.dtype))
        limits, _ = limits_of(stage, options)
        return stage, Capacity(limits.kv_tokens, limits.tokens_in_a_step)

    secret = Secret(bytes.fromhex(launch.pipeline.secret))
    stage = ServedStage((launch.pipeline.host, 0), secret, launch.placement, build, threads)
    await door.tell(endpoint=stage.endpoint, shape=shape)
    return _served(stage, options)


def _served(stage: ServedStage, options: Options) -> ServedEngine:
    info = EngineInfo(
        model=options.served_name or "",
        engine="layer-shard",
        engine_version=f"transformers {transformers.__version__}, torch {torch.__version__}",
        max_model_len=0,
        kv_block_size=BLOCK,
        kv_blocks=0,
        dtype=options.dtype,
        memory_bytes=0,
    )

    async def close() -> None:
        await asyncio.to_thread(stage.close)

    async def never() -> str:
        await asyncio.Event().wait()
        return ""

    return ServedEngine(
        info=lambda: dataclasses.replace(info, memory_bytes=stage.memory_bytes),
        app=_no_requests,
        generate=_nothing,
        kv=KvContents(boot_epoch=time.time_ns()),
        load=EngineLoad,
        close=close,
        work_done=lambda: stage.work_done,
        broken=never,
    )


async def _no_requests(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "http":
        await send_error(send, InvalidRequest("This is one stage of a model; ask its replica's head."))


async def _nothing(request: GenerateRequest) -> AsyncGenerator[GenerateDelta, None]:
    raise InvalidRequest("This is one stage of a model; ask its replica's head.")
    yield
