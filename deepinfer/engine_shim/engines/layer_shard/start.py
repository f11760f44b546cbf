"""From a launch to what it starts: an engine with the whole model, the head of a pipeline, or the host of a stage."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from deepinfer.engine_shim.engine_args import layer_shard_args
from deepinfer.engine_shim.engines.layer_shard.engine import LayerShardEngine
from deepinfer.engine_shim.engines.layer_shard.options import Options
from deepinfer.engine_shim.engines.layer_shard.pipeline.member import MemberOf, joined
from deepinfer.engine_shim.loading_thread import in_thread
from deepinfer.engine_shim.pipeline_door import PipelineDoor
from deepinfer.engine_shim.token_engine import TokenEngine
from deepinfer.fleet.launch import EngineLaunch

Progress = Callable[[str], None]


async def started(launch: EngineLaunch, folder: Path, progress: Progress, door: PipelineDoor | None) -> TokenEngine:
    """Raises a `LayerShardError` when the model cannot be served."""
    loop = asyncio.get_running_loop()
    options = _options(launch)

    def tell(line: str) -> None:
        loop.call_soon_threadsafe(progress, line)

    if launch.pipeline is None or door is None:
        return await in_thread(lambda: LayerShardEngine.from_folder(folder, options, tell))
    member = await joined(folder, options, launch.pipeline, MemberOf(launch.placement, door, tell))
    if not launch.pipeline.is_ready_at_once:
        await member.settled()
    return member


def _options(launch: EngineLaunch) -> Options:
    args = layer_shard_args(launch.engine_args)
    return Options(
        device=launch.device,
        dtype=launch.dtype,
        max_model_len=launch.max_model_len,
        gpu_memory_utilization=launch.gpu_memory_utilization,
        max_num_seqs=args.max_num_seqs,
        max_num_batched_tokens=args.max_num_batched_tokens,
        threads=args.threads,
        served_name=launch.served_names[0],
    )
