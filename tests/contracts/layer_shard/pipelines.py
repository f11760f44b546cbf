"""Pipelines whose stages listen on real ports: in threads of this process, where that is enough."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

from deepinfer.engine_shim.engines.layer_shard.pipeline.engine import PipelineEngine
from deepinfer.engine_shim.engines.layer_shard.pipeline.handshake import Secret
from deepinfer.engine_shim.engines.layer_shard.pipeline.head import Pipeline, Seat
from deepinfer.engine_shim.engines.layer_shard.pipeline.hosting import Capacity, Hosting
from deepinfer.engine_shim.engines.layer_shard.pipeline.messages import Peer
from deepinfer.engine_shim.engines.layer_shard.pipeline.remote_stage import StageLost
from deepinfer.engine_shim.engines.layer_shard.pipeline.served_stage import ServedStage
from deepinfer.engine_shim.engines.layer_shard.schedule import Limits
from deepinfer.engine_shim.engines.layer_shard.stage import Source, Stage, build_stage
from deepinfer.engine_shim.token_engine import EngineInfo, SamplingParams, TokenRequest

SECRET = Secret(b"a secret of thirty-two bytes ...")
LIMITS = Limits(sequences=16, tokens_in_a_step=256, kv_tokens=4096)


def served_stage(folder: Path, name: str, journal_bytes: int = 1 << 20) -> ServedStage:
    def build(layers: range) -> tuple[Stage, Capacity]:
        return build_stage(Source(folder, layers)), Capacity(LIMITS.kv_tokens, LIMITS.tokens_in_a_step, journal_bytes)

    return ServedStage(("127.0.0.1", 0), SECRET, name, Hosting(build))


def seats_of(stages: Sequence[ServedStage], cuts: Sequence[int], layers: int = 7) -> list[Seat]:
    """The stages after the head, which has the layers up to the first cut."""
    edges = [*cuts, layers]
    return [
        Seat(Peer(stage.name, stage.endpoint), (start, stop))
        for stage, (start, stop) in zip(stages, pairwise(edges), strict=True)
    ]


class Pipelined:
    """A head engine, its other stages, and who was lost."""

    def __init__(self, folder: Path, cuts: Sequence[int], journal_bytes: int) -> None:
        self.folder, self.cuts, self._journal_bytes = folder, cuts, journal_bytes
        self.stages = [self.spare(f"stage-{number}") for number in range(1, len(cuts) + 1)]
        self.lost: asyncio.Queue[StageLost] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        first = build_stage(Source(folder, range(cuts[0])))

        def lost(why: StageLost) -> None:
            loop.call_soon_threadsafe(self.lost.put_nowait, why)

        pipeline = Pipeline(first, SECRET, lost, journal_bytes)
        pipeline.prepare(self.seats)
        pipeline.begin(1, self.seats)
        info = EngineInfo("tiny", "layer-shard", "test", 256, 16, LIMITS.kv_tokens // 16, "x", 0)
        self.engine = PipelineEngine(pipeline, LIMITS, info)

    def spare(self, name: str) -> ServedStage:
        return served_stage(self.folder, name, self._journal_bytes)

    @property
    def seats(self) -> list[Seat]:
        return seats_of(self.stages, self.cuts)

    async def close(self) -> None:
        await self.engine.close()
        for stage in self.stages:
            stage.close()


@asynccontextmanager
async def pipelined(folder: Path, cuts: Sequence[int], journal_bytes: int = 1 << 20) -> AsyncIterator[Pipelined]:
    made = Pipelined(folder, cuts, journal_bytes)
    try:
        yield made
    finally:
        await made.close()


async def answer_of(engine: PipelineEngine, prompt: list[int], sampling: SamplingParams) -> list[int]:
    deltas = engine.generate(TokenRequest("request", tuple(prompt), sampling))
    return [token async for delta in deltas for token in delta.token_ids]


async def answers_amid(
    engine: PipelineEngine, prompts: list[list[int]], sampling: SamplingParams, happens: Callable[[], Awaitable[None]]
) -> list[list[int]]:
    """The answers of requests in whose midst something happens."""
    under_way = asyncio.Event()
    answers: list[list[int]] = [[] for _ in prompts]

    async def ask(at: int) -> None:
        async for delta in engine.generate(TokenRequest(str(at), tuple(prompts[at]), sampling)):
            assert not delta.error
            answers[at] += delta.token_ids
            if len(answers[at]) == 3:
                under_way.set()

    async with asyncio.TaskGroup() as tasks:
        for at in range(len(prompts)):
            tasks.create_task(ask(at))
        await under_way.wait()
        await happens()
    return answers
