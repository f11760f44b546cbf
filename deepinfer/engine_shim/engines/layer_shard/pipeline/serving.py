"""A pipeline's head as its shim serves it: it follows the layouts that its agent brings, and tells who is lost.

Requests wait while a stage is replaced. They end, with the reason, when nobody takes over its layers for too long.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import psutil
import torch
import transformers

from deepinfer.engine_shim.engines.layer_shard.capacity import limits_of
from deepinfer.engine_shim.engines.layer_shard.options import Options
from deepinfer.engine_shim.engines.layer_shard.pipeline.engine import PipelineEngine
from deepinfer.engine_shim.engines.layer_shard.pipeline.handshake import Secret
from deepinfer.engine_shim.engines.layer_shard.pipeline.head import Pipeline, Seat
from deepinfer.engine_shim.engines.layer_shard.pipeline.messages import Peer
from deepinfer.engine_shim.engines.layer_shard.pipeline.remote_stage import StageLost
from deepinfer.engine_shim.engines.layer_shard.schedule import BLOCK, Limits
from deepinfer.engine_shim.engines.layer_shard.stage import Source, Stage, build_stage, end_token_ids
from deepinfer.engine_shim.loading_thread import in_thread
from deepinfer.engine_shim.pipeline_door import PipelineDoor
from deepinfer.engine_shim.token_engine import EngineInfo
from deepinfer.fleet.errors import EngineWillNotStart
from deepinfer.fleet.launch import EngineLaunch
from deepinfer.fleet.pipeline import Layout
from deepinfer.planning.model_files import shape_of_folder
from deepinfer.planning.model_shape import CannotBePlanned

PATIENCE_SECONDS: Final = 60.0
"""For a layout without the lost stage; then the requests that wait for it end."""

log = logging.getLogger(__name__)


async def head_of_a_pipeline(
    launch: EngineLaunch, folder: Path, options: Options, door: PipelineDoor, *, tell: Callable[[str], None]
) -> PipelineEngine:
    """Waits for a layout whose stages all come up. Raises a `LayerShardError` where the model cannot be served."""
    if launch.pipeline is None:
        raise EngineWillNotStart("The launch says nothing of a pipeline.")
    try:
        shape = await in_thread(lambda: shape_of_folder(folder, launch.dtype))
    except CannotBePlanned as error:
        raise EngineWillNotStart(str(error)) from error
    await door.tell(shape=shape)
    head = Head(folder, options, door, Secret(bytes.fromhex(launch.pipeline.secret)))
    tell("waiting for its stages")
    return await head.started(tell)


class Head:
    """One replica's head, from its first layout on."""

    def __init__(self, folder: Path, options: Options, door: PipelineDoor, secret: Secret) -> None:
        self._folder, self._options, self._door, self._secret = folder, options, door, secret
        self._threads = options.threads or psutil.cpu_count(logical=False) or 1
        self._loop = asyncio.get_running_loop()
        self._losses: asyncio.Queue[StageLost] = asyncio.Queue()
        self._layout: Layout | None = None

    async def started(self, tell: Callable[[str], None]) -> PipelineEngine:
        torch.set_num_threads(self._threads)
        number = 0
        while True:
            layout = await self._door.layout_after(number)
            number = layout.number
            tell(f"loading layers {layout.layers[0]} to {layout.layers[1] - 1}, and the others on {_nodes(layout)}")
            try:
                engine = await in_thread(lambda layout=layout: self._begun(layout))  # type: ignore[misc]
            except StageLost as why:
                log.warning("layout %d does not come up: %s", number, why)
                await self._door.tell(number=number, lost=why.stage, reason=str(why))
                continue
            await self._door.tell(number=number, lost="", reason="")
            self._layout = layout
            engine.accompany(self._follow(engine), self._tell_losses(engine))
            return engine

    def _begun(self, layout: Layout) -> PipelineEngine:
        """Blocking."""
        first = self._built(layout)
        pipeline = Pipeline(first, self._secret, self._lost)
        seats = seats_of(layout)
        try:
            pipeline.prepare(seats)
            pipeline.begin(layout.number, seats)
        except StageLost:
            pipeline.release()
            raise
        here, longest = limits_of(first, self._options)
        limits = Limits(here.sequences, here.tokens_in_a_step, min(here.kv_tokens, pipeline.kv_tokens))
        info = EngineInfo(
            model=self._options.served_name or self._folder.name,
            engine="layer-shard",
            engine_version=f"transformers {transformers.__version__}, torch {torch.__version__}",
            max_model_len=min(longest, limits.kv_tokens),
            kv_block_size=BLOCK,
            kv_blocks=limits.kv_tokens // BLOCK,
            dtype=str(first.dtype).removeprefix("torch."),
            memory_bytes=first.weight_bytes,
            eos_token_ids=end_token_ids(self._folder),
            max_running=self._options.max_num_seqs,
        )
        return PipelineEngine(pipeline, limits, info, threads=self._threads)

    def _built(self, layout: Layout) -> Stage:
        source = Source(self._folder, range(*layout.layers), self._options.device, self._options.dtype)
        return build_stage(source)

    async def _follow(self, engine: PipelineEngine) -> None:
        """Make every new layout so. Where one does not come up, the next one may."""
        while self._layout is not None:
            layout = await self._door.layout_after(self._layout.number)
            before, self._layout = self._layout, layout
            try:
                first = None if layout.layers == before.layers else await in_thread(lambda: self._built(self._layout))  # type: ignore[arg-type]
                await engine.arrange(layout.number, seats_of(layout), first)
            except StageLost as why:
                log.warning("layout %d does not come up: %s", layout.number, why)
                await self._door.tell(number=layout.number, lost=why.stage, reason=str(why))
            else:
                log.info("layout %d serves: %s", layout.number, layout.why)
                await self._door.tell(number=layout.number, lost="", reason="")

    async def _tell_losses(self, engine: PipelineEngine) -> None:
        while True:
            why = await self._losses.get()
            log.warning("%s", why)
            await self._door.tell(lost=why.stage, reason=str(why))
            with suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE_SECONDS):
                    await engine.is_whole()
                    continue
            await engine.end_all(f"{why}, and nobody took over its layers within {PATIENCE_SECONDS:g} s; try again.")

    def _lost(self, why: StageLost) -> None:
        self._loop.call_soon_threadsafe(self._losses.put_nowait, why)


def seats_of(layout: Layout) -> list[Seat]:
    return [Seat(Peer(seat.placement, seat.endpoint), seat.layers) for seat in layout.seats]


def _nodes(layout: Layout) -> str:
    return ", ".join(dict.fromkeys(seat.node for seat in layout.seats))
