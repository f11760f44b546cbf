"""One of our sides in a process of its own: the whole model, or a pipeline's head; as JSON lines on stdin and stdout.

    python -m benchmarks.shards.head_process '{"folder": …, "threads": 1, "layers": [0, 18], "seats": […]}'

Takes {"prompts": [[id, …], …], "new_tokens": N}; answers how long it took, the tokens, when each came, and every step
of the pipeline. A stage that is lost is replaced by one of the spares, as a layout would.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from benchmarks.shards.agreed import KV_TOKENS, LONGEST_STEP, SECRET, SEQUENCES
from benchmarks.shards.steps import Answered, SeatOf, Step
from deepinfer.engine_shim.engines.layer_shard.batch import Batch, StepResult
from deepinfer.engine_shim.engines.layer_shard.engine import LayerShardEngine
from deepinfer.engine_shim.engines.layer_shard.pipeline.engine import PipelineEngine
from deepinfer.engine_shim.engines.layer_shard.pipeline.head import Pipeline, Seat
from deepinfer.engine_shim.engines.layer_shard.pipeline.messages import Peer
from deepinfer.engine_shim.engines.layer_shard.pipeline.remote_stage import StageLost
from deepinfer.engine_shim.engines.layer_shard.schedule import BLOCK, Limits
from deepinfer.engine_shim.engines.layer_shard.stage import Source, build_stage
from deepinfer.engine_shim.engines.layer_shard.stages import WholeModel
from deepinfer.engine_shim.token_engine import EngineInfo, SamplingParams, TokenRequest

LIMITS = Limits(SEQUENCES, LONGEST_STEP, KV_TOKENS)
INFO = EngineInfo("smollm2", "layer-shard", "bench", 2048, BLOCK, KV_TOKENS // BLOCK, "bfloat16", 0)


@dataclass(frozen=True)
class Told:
    """What the process is told when it starts."""

    folder: str
    threads: int
    layers: tuple[int, int]
    seats: tuple[SeatOf, ...] = ()
    spares: tuple[SeatOf, ...] = ()  # their layers are those of whom they replace


class RecordedPipeline(Pipeline):
    """It keeps when each step began here, when it came back, and what it took on the way."""

    steps: list[Step]

    def follow(self, tell: Callable[[StepResult], None]) -> None:
        self._began: dict[int, tuple[float, Batch]] = {}
        self.steps = []

        def came(result: StepResult) -> None:
            now = time.perf_counter()
            began, batch = self._began.pop(result.step)
            computing = [stage.computing for stage in result.times]
            queued = [stage.queued for stage in result.times]
            self.steps.append(Step(began, now, len(batch.spans), batch.tokens, computing, queued))
            tell(result)

        super().follow(came)

    def launch(self, batch: Batch, token_ids: Sequence[int]) -> StepResult | None:
        self._began[batch.step] = time.perf_counter(), batch
        return super().launch(batch, token_ids)


@dataclass
class Side:
    """An engine and what is known of its steps."""

    engine: LayerShardEngine
    pipeline: RecordedPipeline | None = None
    replacing: asyncio.Task[None] | None = None

    async def answers(self, prompts: list[list[int]], new_tokens: int) -> Answered:
        if self.pipeline:
            self.pipeline.steps.clear()
        began = time.perf_counter()
        told = await asyncio.gather(*(self._answer(prompt, new_tokens) for prompt in prompts))
        seconds = time.perf_counter() - began
        steps = list(self.pipeline.steps) if self.pipeline else []
        return Answered(seconds, [tokens for tokens, _ in told], [came for _, came in told], steps)

    async def _answer(self, prompt: list[int], new_tokens: int) -> tuple[list[int], list[float]]:
        sampling = SamplingParams(max_tokens=new_tokens, temperature=0, ignore_eos=True)
        tokens: list[int] = []
        came: list[float] = []
        async for delta in self.engine.generate(TokenRequest("bench", tuple(prompt), sampling)):
            if delta.error:
                raise SystemExit(f"The engine failed: {delta.error}")
            tokens += delta.token_ids
            came += [time.perf_counter()] * len(delta.token_ids)
        return tokens, came


def opened(told: Told) -> Side:
    """Blocking but for what it needs of the event loop."""
    torch.set_num_threads(told.threads)
    first = build_stage(Source(Path(told.folder), range(*told.layers)))
    if not told.seats:
        return Side(LayerShardEngine(WholeModel(first), LIMITS, INFO, threads=told.threads))
    loop, lost = asyncio.get_running_loop(), asyncio.Queue[StageLost]()
    pipeline = RecordedPipeline(first, SECRET, lambda why: _tell(loop, lost, why))
    seats = [_seat(seat) for seat in told.seats]
    pipeline.prepare(seats)
    pipeline.begin(1, seats)
    engine = PipelineEngine(pipeline, LIMITS, INFO, threads=told.threads)
    replacing = loop.create_task(_replacing(engine, lost, seats, [_seat(spare) for spare in told.spares]))
    return Side(engine, pipeline, replacing)


def _tell(loop: asyncio.AbstractEventLoop, lost: asyncio.Queue[StageLost], why: StageLost) -> None:
    loop.call_soon_threadsafe(lost.put_nowait, why)


def _seat(seat: SeatOf) -> Seat:
    return Seat(Peer(seat.name, seat.endpoint), (seat.start, seat.stop))


async def _replacing(
    engine: PipelineEngine, lost: asyncio.Queue[StageLost], seats: list[Seat], spares: list[Seat]
) -> None:
    epoch = 1
    while True:
        why = await lost.get()
        gone = next((number for number, seat in enumerate(seats) if seat.peer.name == why.stage), None)
        if gone is None or not spares:
            raise SystemExit(f"{why}, and there is no spare.")
        seats[gone] = replace(spares.pop(0), layers=seats[gone].layers)
        epoch += 1
        await engine.arrange(epoch, seats)


async def main(told: Told) -> None:
    side = opened(told)
    print(json.dumps({"ready": True}), flush=True)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        order = json.loads(line)
        print(json.dumps(asdict(await side.answers(order["prompts"], order["new_tokens"]))), flush=True)
    if side.replacing:
        side.replacing.cancel()
    await side.engine.close()


if __name__ == "__main__":
    fields = json.loads(sys.argv[1])
    for role in ("seats", "spares"):
        fields[role] = tuple(SeatOf(**seat) for seat in fields.get(role, ()))
    asyncio.run(main(Told(**fields)))
