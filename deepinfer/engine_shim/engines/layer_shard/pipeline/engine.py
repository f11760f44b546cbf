"""An engine whose first layers are here and whose others are elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from deepinfer.engine_shim.engines.layer_shard.engine import LayerShardEngine
from deepinfer.engine_shim.engines.layer_shard.pipeline.head import Pipeline, Seat
from deepinfer.engine_shim.engines.layer_shard.schedule import Limits
from deepinfer.engine_shim.engines.layer_shard.stage import Stage
from deepinfer.engine_shim.engines.layer_shard.steps import Steps
from deepinfer.engine_shim.token_engine import EngineInfo


class PipelineEngine(LayerShardEngine):
    """Serves one model over several stages, which may change while it serves."""

    def __init__(self, pipeline: Pipeline, limits: Limits, info: EngineInfo, *, threads: int = 1) -> None:
        super().__init__(pipeline, limits, info, threads=threads)
        self._pipeline = pipeline
        self._arranged = asyncio.Condition()
        self._waits = 0
        self._kv_tokens = limits.kv_tokens  # answers may have been promised so many; more are of no use

    async def arrange(self, epoch: int, seats: Sequence[Seat], first: Stage | None = None) -> None:
        """Go on with these stages, and with other layers here if there are: requests that run lose nothing but time.
        Raises `StageLost`; then call it again with others."""
        await asyncio.to_thread(self._pipeline.prepare, seats)

        def begin(steps: Steps) -> None:
            if first is not None:
                self._pipeline.put_first(first)
            steps.limit(min(self._kv_tokens, self._pipeline.kv_tokens))
            self._pipeline.begin(epoch, seats, steps.again())

        await self.between_batches(begin)
        async with self._arranged:
            self._arranged.notify_all()

    async def is_whole(self) -> None:
        """Returns when no stage is missing."""
        async with self._arranged:
            await self._arranged.wait_for(lambda: self._pipeline.is_whole)

    def work_done(self) -> int:
        """While a stage is missing, waiting for it is what there is to do: it is no stall."""
        self._waits += not self._pipeline.is_whole
        return super().work_done() + self._waits
