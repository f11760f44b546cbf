"""The layer-shard engine: stock transformers layers, our own batching. It implements `TokenEngine`.

One thread computes; the event loop only queues requests and reads deltas. Commands reach the thread through a queue
that it empties between two steps, and all deltas of a step reach the event loop in one wake-up.

Limit: there is no prefix cache, so `kv` stays empty.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import itertools
import logging
import queue
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psutil
import torch
import transformers

from deepinfer.engine_shim.engines.layer_shard.batch import StepResult
from deepinfer.engine_shim.engines.layer_shard.capacity import limits_of
from deepinfer.engine_shim.engines.layer_shard.errors import LayerShardError
from deepinfer.engine_shim.engines.layer_shard.options import Options
from deepinfer.engine_shim.engines.layer_shard.schedule import BLOCK, Limits
from deepinfer.engine_shim.engines.layer_shard.sequence import Sequence
from deepinfer.engine_shim.engines.layer_shard.stage import Source, build_stage, end_token_ids
from deepinfer.engine_shim.engines.layer_shard.stages import Stages, WholeModel
from deepinfer.engine_shim.engines.layer_shard.steps import Deltas, Steps
from deepinfer.engine_shim.kv_contents import KvContents
from deepinfer.engine_shim.token_engine import (
    ContextTooLong,
    EngineInfo,
    EngineLoad,
    FinishReason,
    TokenDelta,
    TokenRequest,
)
from deepinfer.fleet.errors import InvalidRequest

Progress = Callable[[str], None]

_64_BITS = (1 << 64) - 1

log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Caller:
    """Who waits for a sequence's deltas."""

    sequence: Sequence
    loop: asyncio.AbstractEventLoop
    deltas: asyncio.Queue[TokenDelta]


@dataclass(frozen=True)
class _Add:
    caller: _Caller


@dataclass(frozen=True)
class _Abort:
    caller: _Caller


@dataclass(frozen=True)
class _Between:
    """What is done in the engine's thread between two batches."""

    work: Callable[[Steps], None]
    done: concurrent.futures.Future[None]

    def do(self, steps: Steps) -> None:
        try:
            self.work(steps)
        except Exception as error:
            self.done.set_exception(error)
        else:
            self.done.set_result(None)


@dataclass(frozen=True)
class _Close:
    pass


class LayerShardEngine:
    """Serves one model. Make it with `from_folder`, in a thread: reading the weights blocks."""

    def __init__(self, stages: Stages, limits: Limits, info: EngineInfo, *, seed: int = 0, threads: int = 1) -> None:
        self.info = info
        self.kv = KvContents(boot_epoch=time.time_ns())
        self._stages = stages
        self._steps = Steps(limits)
        self._load = EngineLoad()
        self._seed = seed
        self._threads = threads
        self._numbers = itertools.count()
        self._callers: dict[int, _Caller] = {}
        self._commands: queue.SimpleQueue[_Add | _Abort | _Between | StepResult | _Close] = queue.SimpleQueue()
        stages.follow(self._commands.put)
        self._closed = False
        self._fault: concurrent.futures.Future[BaseException] = concurrent.futures.Future()
        self._thread = threading.Thread(target=self._run_or_tell, name="layer-shard", daemon=True)
        self._thread.start()

    @classmethod
    def from_folder(cls, model_path: Path, options: Options | None = None, progress: Progress | None = None) -> Self:
        """Blocking. Raises a `LayerShardError` when the model cannot be served."""
        options = options or Options()
        tell = progress or (lambda line: None)
        threads = options.threads or psutil.cpu_count(logical=False) or 1
        torch.set_num_threads(threads)
        tell(f"reading the weights of {model_path.name}")
        stage = build_stage(Source(model_path, options.layers, options.device, options.dtype))
        if not (stage.shape.first and stage.shape.last):
            raise LayerShardError("One stage must hold all layers; pipelines over several nodes are not built yet.")
        limits, longest = limits_of(stage, options)
        info = EngineInfo(
            model=options.served_name or model_path.name,
            engine="layer-shard",
            engine_version=f"transformers {transformers.__version__}, torch {torch.__version__}",
            max_model_len=longest,
            kv_block_size=BLOCK,
            kv_blocks=limits.kv_tokens // BLOCK,
            dtype=str(stage.dtype).removeprefix("torch."),
            memory_bytes=stage.weight_bytes,
            eos_token_ids=end_token_ids(model_path),
            max_running=options.max_num_seqs,
        )
        tell(f"ready: {stage.weight_bytes / 1e6:.0f} MB of weights, room for {limits.kv_tokens} tokens")
        return cls(WholeModel(stage), limits, info, seed=options.seed, threads=threads)

    async def generate(self, request: TokenRequest) -> AsyncIterator[TokenDelta]:
        """Deltas until one has a finish reason. An answer that reaches the model's length ends there."""
        caller = self._called(request)
        self._commands.put(_Add(caller))
        ended = False
        try:
            while not ended:
                delta = await caller.deltas.get()
                ended = delta.finish_reason is not None
                yield delta
        finally:
            if not ended:
                self._commands.put(_Abort(caller))

    async def end_all(self, error: str) -> None:
        """Every request that runs or waits ends with this error."""
        await self.between_batches(lambda steps: self._tell(steps.end_all(error)))

    async def between_batches(self, work: Callable[[Steps], None]) -> None:
        """Have it done in the engine's thread, while nothing is launched. Raises what it raises."""
        between = _Between(work, concurrent.futures.Future())
        self._commands.put(between)
        await asyncio.wrap_future(between.done)

    def load(self) -> EngineLoad:
        """As of the last step."""
        return self._load

    def work_done(self) -> int:
        return self._steps.work_done

    async def broken(self) -> str:
        """What ends the thread but `close` is a fault of this engine: no request would ever be answered again."""
        fault = await asyncio.shield(asyncio.wrap_future(self._fault))
        return f"its thread ended ({fault!r})"

    async def close(self) -> None:
        """Stop after the step under way; requests that still run end with an error."""
        if not self._closed:
            self._closed = True
            self._commands.put(_Close())
        await asyncio.to_thread(self._thread.join)

    def _called(self, request: TokenRequest) -> _Caller:
        if self._closed:
            raise LayerShardError("The engine is closed; ask another replica.")
        prompt = len(request.token_ids)
        if not 0 < prompt < self.info.max_model_len:
            raise ContextTooLong(prompt, self.info.max_model_len)
        self._check_token_ids(request)
        number = next(self._numbers)
        seed = request.sampling.seed
        sequence = Sequence(
            number=number,
            request=request,
            end_token_ids=() if request.sampling.ignore_eos else self.info.eos_token_ids,
            longest=min(prompt + request.sampling.max_tokens, self.info.max_model_len),
            seed=(self._seed + number if seed is None else seed) & _64_BITS,
        )
        return _Caller(sequence, asyncio.get_running_loop(), asyncio.Queue())

    def _check_token_ids(self, request: TokenRequest) -> None:
        """An id the model does not have would fail the whole step, and with it other requests."""
        size = self._stages.first.vocabulary
        biased = tuple(token for token, _ in request.sampling.logit_bias)
        given = {"prompt": request.token_ids, "stop_token_ids": request.sampling.stop_token_ids, "logit_bias": biased}
        for param, ids in given.items():
            if not all(0 <= token < size for token in ids):
                raise InvalidRequest(f"{param} has a token id outside the model's 0..{size - 1}; correct it.", param)

    def _run_or_tell(self) -> None:
        try:
            self._run()
        except BaseException as error:
            log.exception("the thread of the layer-shard engine ended")
            self._fault.set_result(error)

    def _run(self) -> None:
        """The thread: obey all commands, give the stages a batch, tell the callers; again."""
        torch.set_num_threads(self._threads)  # OpenMP counts threads for each calling thread
        launched = False
        while self._obey(wait=not launched):
            launched = self._launch()
        stopped = TokenDelta(finish_reason=FinishReason.ERROR, error="The engine was stopped.")
        self._tell([(caller.sequence, stopped) for caller in self._callers.values()])
        self._stages.release()

    def _obey(self, *, wait: bool) -> bool:
        """Take the commands there are; `wait` for one when there is nothing to compute. False: stop."""
        while True:
            try:
                command = self._commands.get(block=wait)
            except queue.Empty:
                return True
            wait = False
            match command:
                case _Add(caller):
                    self._callers[caller.sequence.number] = caller
                    self._steps.add(caller.sequence)
                case _Abort(caller):
                    self._callers.pop(caller.sequence.number, None)
                    self._steps.remove(caller.sequence)
                case StepResult() as result:
                    self._take(result)
                case _Between() as between:
                    between.do(self._steps)
                case _Close():
                    return False
            self._publish()

    def _launch(self) -> bool:
        """Whether there was a batch to give."""
        groups = self._stages.groups(self._steps.sequences)
        if self._steps.under_way >= groups or not (next_one := self._steps.next_batch(groups)):
            return False
        result = self._stages.launch(next_one.batch, next_one.token_ids)
        if result is not None:
            self._take(result)
        return True

    def _take(self, result: StepResult) -> None:
        if result.epoch != self._stages.epoch:
            return  # told before the stages changed; the batch was sent again
        deltas = self._steps.returned(result)
        self._publish()  # first, so that who has a delta sees a load that knows of it
        self._tell(deltas)

    def _tell(self, deltas: Deltas) -> None:
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[_Caller, TokenDelta]]] = defaultdict(list)
        for sequence, delta in deltas:
            caller = self._callers[sequence.number]
            by_loop[caller.loop].append((caller, delta))
        for sequence, delta in deltas:
            if delta.finish_reason is not None:
                del self._callers[sequence.number]
        for loop, told in by_loop.items():
            try:
                loop.call_soon_threadsafe(_deliver, told)
            except RuntimeError:  # the loop was closed without closing its iterators: nobody listens any more
                for caller, _ in told:
                    self._commands.put(_Abort(caller))

    def _publish(self) -> None:
        self._load = self._steps.load()
        here = self._stages.first
        held = here.weight_bytes + self._steps.kv_tokens_held * here.kv_shape.bytes_per_token
        if held != self.info.memory_bytes:
            self.info = dataclasses.replace(self.info, memory_bytes=held)


def _deliver(told: list[tuple[_Caller, TokenDelta]]) -> None:
    for caller, delta in told:
        caller.deltas.put_nowait(delta)
