"""Being the head of a pipeline: the engine that takes requests, over the stages that the newest layout names.

Requests wait while a stage is replaced. They end, with the reason, when nobody takes over its layers for too long.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import torch
import transformers

from deepinfer.engine_shim.engines.layer_shard.options import Options
from deepinfer.engine_shim.engines.layer_shard.pipeline.engine import PipelineEngine
from deepinfer.engine_shim.engines.layer_shard.pipeline.handshake import Secret
from deepinfer.engine_shim.engines.layer_shard.pipeline.head import Pipeline, Seat
from deepinfer.engine_shim.engines.layer_shard.pipeline.hosting import Capacity
from deepinfer.engine_shim.engines.layer_shard.pipeline.messages import Peer
from deepinfer.engine_shim.engines.layer_shard.pipeline.remote_stage import StageLost
from deepinfer.engine_shim.engines.layer_shard.schedule import BLOCK, Limits
from deepinfer.engine_shim.engines.layer_shard.stage import Stage
from deepinfer.engine_shim.loading_thread import in_thread
from deepinfer.engine_shim.pipeline_door import PipelineDoor
from deepinfer.engine_shim.token_engine import EngineInfo
from deepinfer.fleet.pipeline import Layout

PATIENCE_SECONDS: Final = 60.0
"""For a layout without the lost stage; then the requests that wait for it end."""

Build = Callable[[range], tuple[Stage, Capacity]]

log = logging.getLogger(__name__)


class Heading:
    """`engine` is there while it is the head and its stages have come up once."""

    def __init__(self, placement: str, options: Options, secret: Secret, build: Build) -> None:
        self.engine: PipelineEngine | None = None
        self._placement, self._options, self._secret, self._build = placement, options, secret, build
        self._layout: Layout | None = None
        self._loop = asyncio.get_running_loop()
        self._fault: asyncio.Future[str] = self._loop.create_future()
        self._companions: list[asyncio.Task[None]] = []
        self._losses: asyncio.Queue[StageLost] = asyncio.Queue()

    async def take(self, layout: Layout, door: PipelineDoor, tell: Callable[[str], None]) -> None:
        """Serve with this layout. Where it does not come up, who is missing is told, and the next one may."""
        before, self._layout = self._layout, layout
        tell(f"loading layers {layout.layers[0]} to {layout.layers[1] - 1}, and the others on {_nodes(layout)}")
        try:
            if self.engine is None or before is None or before.id != layout.id:
                await self.end("The replica begins anew.")
                self.engine = await in_thread(lambda: self._begun(layout))
                self._accompany(self.engine, door)
            else:
                first = None if layout.layers == before.layers else await in_thread(lambda: self._first(layout))
                await self.engine.arrange(layout.number, seats_of(layout), first)
        except StageLost as why:
            log.warning("layout %d does not come up: %s", layout.number, why)
            await door.tell(serves=layout.id, number=layout.number, lost=why.stage, reason=str(why))
        else:
            log.info("layout %d serves: %s", layout.number, layout.why)
            await door.tell(serves=layout.id, number=layout.number, lost="", reason="")

    async def end(self, reason: str) -> None:
        """Take no requests any more; those that run end with this reason."""
        engine, self.engine = self.engine, None
        for companion in self._companions:
            companion.cancel()
        self._companions.clear()
        if engine is not None:
            await engine.end_all(reason)
            await engine.close()

    async def broken(self) -> str:
        """Why the engine can compute no more; waits for it."""
        return await asyncio.shield(self._fault)

    def fail(self, reason: str) -> None:
        """This process is of no use any more."""
        if not self._fault.done():
            self._fault.set_result(reason)

    def _begun(self, layout: Layout) -> PipelineEngine:
        """Blocking."""
        first, here = self._build(range(*layout.layers))
        pipeline = Pipeline(first, self._secret, self._lost)
        seats = seats_of(layout)
        try:
            pipeline.prepare(seats)
            pipeline.begin(layout.number, seats)
        except StageLost:
            pipeline.release()
            raise
        options = self._options
        limits = Limits(options.max_num_seqs, here.tokens_in_a_step, min(here.kv_tokens, pipeline.kv_tokens))
        return PipelineEngine(pipeline, limits, self._info(first, limits), threads=options.threads or 1)

    def _info(self, first: Stage, limits: Limits) -> EngineInfo:
        options = self._options
        return EngineInfo(
            model=options.served_name or "",
            engine="layer-shard",
            engine_version=f"transformers {transformers.__version__}, torch {torch.__version__}",
            max_model_len=min(options.max_model_len or first.max_model_len, first.max_model_len, limits.kv_tokens),
            kv_block_size=BLOCK,
            kv_blocks=limits.kv_tokens // BLOCK,
            dtype=str(first.dtype).removeprefix("torch."),
            memory_bytes=first.weight_bytes,
            eos_token_ids=options.end_token_ids,
            max_running=options.max_num_seqs,
        )

    def _first(self, layout: Layout) -> Stage:
        stage, _ = self._build(range(*layout.layers))
        return stage

    def _accompany(self, engine: PipelineEngine, door: PipelineDoor) -> None:
        works = (self._tell_losses(engine, door), self._tell_of_its_end(engine))
        self._companions = [self._loop.create_task(work) for work in works]

    async def _tell_losses(self, engine: PipelineEngine, door: PipelineDoor) -> None:
        while True:
            why = await self._losses.get()
            log.warning("%s", why)
            await door.tell(lost=why.stage, reason=str(why))
            with suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE_SECONDS):
                    await engine.is_whole()
                    continue
            await engine.end_all(f"{why}, and nobody took over its layers within {PATIENCE_SECONDS:g} s; try again.")

    async def _tell_of_its_end(self, engine: PipelineEngine) -> None:
        self.fail(await engine.broken())

    def _lost(self, why: StageLost) -> None:
        self._loop.call_soon_threadsafe(self._losses.put_nowait, why)


def seats_of(layout: Layout) -> list[Seat]:
    return [Seat(Peer(seat.placement, seat.endpoint), seat.layers) for seat in layout.seats]


def _nodes(layout: Layout) -> str:
    return ", ".join(dict.fromkeys(seat.node for seat in layout.seats))
