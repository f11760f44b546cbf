"""An engine whose first layers are here and whose others are elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from deepinfer.engine_shim.engines.layer_shard.engine import LayerShardEngine
from deepinfer.engine_shim.engines.layer_shard.pipeline.head import Pipeline, Seat
from deepinfer.engine_shim.engines.layer_shard.schedule import Limits
from deepinfer.engine_shim.token_engine import EngineInfo


class PipelineEngine(LayerShardEngine):
    """Serves one model over several stages, which may change while it serves."""

    def __init__(
        self, pipeline: Pipeline, limits: Limits, info: EngineInfo, *, seed: int = 0, threads: int = 1
    ) -> None:
        super().__init__(pipeline, limits, info, seed=seed, threads=threads)
        self._pipeline = pipeline

    async def arrange(self, epoch: int, seats: Sequence[Seat]) -> None:
        """Go on with these stages: requests that run lose nothing but time. Raises `StageLost`; then call it again
        with others."""
        await asyncio.to_thread(self._pipeline.prepare, seats)
        await self.between_batches(lambda steps: self._pipeline.begin(epoch, seats, steps.again()))
