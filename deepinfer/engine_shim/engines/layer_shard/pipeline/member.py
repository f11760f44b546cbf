"""One process of a replica in stages, as its shim serves it. It hosts a stage for whoever is the head; while a layout
says that it is the head itself, it takes requests.

It looks like any engine: a request that comes while another process is the head is refused as one that is not ready.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
import transformers

from deepinfer.engine_shim.engines.layer_shard.capacity import limits_of
from deepinfer.engine_shim.engines.layer_shard.options import Options
from deepinfer.engine_shim.engines.layer_shard.pipeline.handshake import Secret
from deepinfer.engine_shim.engines.layer_shard.pipeline.heading import Heading
from deepinfer.engine_shim.engines.layer_shard.pipeline.hosting import Capacity, Hosting
from deepinfer.engine_shim.engines.layer_shard.pipeline.served_stage import ServedStage
from deepinfer.engine_shim.engines.layer_shard.schedule import BLOCK
from deepinfer.engine_shim.engines.layer_shard.stage import Source, Stage, build_stage, end_token_ids
from deepinfer.engine_shim.kv_contents import KvContents
from deepinfer.engine_shim.loading_thread import in_thread
from deepinfer.engine_shim.pipeline_door import PipelineDoor
from deepinfer.engine_shim.token_engine import EngineInfo, EngineLoad, TokenDelta, TokenRequest
from deepinfer.fleet.errors import EngineFailed, EngineWillNotStart, NoReadyReplica
from deepinfer.fleet.launch import PipelineLaunch
from deepinfer.fleet.model_shape import ModelShape
from deepinfer.planning.model_files import shape_of_folder
from deepinfer.planning.model_shape import CannotBePlanned

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MemberOf:
    """Who it is, and how it speaks to its agent."""

    placement: str
    door: PipelineDoor
    tell: Callable[[str], None]  # progress, from any thread


async def joined(folder: Path, options: Options, launch: PipelineLaunch, member: MemberOf) -> Member:
    """Listens for its head from now on. Raises `EngineWillNotStart` where the model cannot be cut into stages."""
    try:
        shape = await in_thread(lambda: shape_of_folder(folder, options.dtype))
    except CannotBePlanned as error:
        raise EngineWillNotStart(str(error)) from error
    threads = options.threads or psutil.cpu_count(logical=False) or 1
    options = dataclasses.replace(options, threads=threads, end_token_ids=end_token_ids(folder))
    torch.set_num_threads(threads)  # of the threads that load

    def build(layers: range) -> tuple[Stage, Capacity]:
        stage = build_stage(Source(folder, layers, options.device, options.dtype))
        limits, _ = limits_of(stage, options)
        return stage, Capacity(limits.kv_tokens, limits.tokens_in_a_step)

    secret = Secret(bytes.fromhex(launch.secret))
    loop = asyncio.get_running_loop()

    def heard(number: int) -> None:
        loop.call_soon_threadsafe(lambda: loop.create_task(member.door.tell(misses=number)))

    hosted = ServedStage((launch.host, 0), secret, member.placement, Hosting(build, threads, heard))
    heading = Heading(member.placement, options, secret, build)
    await member.door.tell(endpoint=hosted.endpoint, shape=shape)
    return Member(hosted, heading, member, _idle(folder, options, shape))


class Member:
    """Implements `TokenEngine`."""

    def __init__(self, hosted: ServedStage, heading: Heading, member: MemberOf, idle: EngineInfo) -> None:
        self._hosted, self._heading, self._member, self._idle = hosted, heading, member, idle
        self._kv = KvContents(boot_epoch=time.time_ns())
        self._settled = asyncio.Event()
        self._following = asyncio.get_running_loop().create_task(self._follow())

    @property
    def info(self) -> EngineInfo:
        if engine := self._heading.engine:
            return engine.info
        return dataclasses.replace(self._idle, memory_bytes=self._hosted.memory_bytes)

    @property
    def kv(self) -> KvContents:
        return self._kv

    async def settled(self) -> None:
        """It serves, or somebody else is the head of its replica. Raises `EngineFailed` when it never will."""
        self._member.tell("waiting for its stages")
        ways = [asyncio.ensure_future(self._settled.wait()), asyncio.ensure_future(self.broken())]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        if not self._settled.is_set():
            raise EngineFailed(await self.broken())

    async def generate(self, request: TokenRequest) -> AsyncGenerator[TokenDelta, None]:
        engine = self._heading.engine
        if engine is None:
            raise NoReadyReplica("Another process is the head of this replica; ask that one.")
        async for delta in engine.generate(request):
            yield delta

    def load(self) -> EngineLoad:
        return self._heading.engine.load() if self._heading.engine else EngineLoad()

    def work_done(self) -> int:
        done = self._heading.engine.work_done() if self._heading.engine else 0
        return done + self._hosted.work_done

    async def broken(self) -> str:
        return await self._heading.broken()

    async def close(self) -> None:
        self._following.cancel()
        await self._heading.end("The engine was stopped.")
        await asyncio.to_thread(self._hosted.close)

    async def _follow(self) -> None:
        try:
            await self._be_what_is_said()
        except Exception as error:  # such as layers that cannot be read here
            log.exception("%s cannot be what its layout says", self._member.placement)
            self._heading.fail(f"it cannot take its part of the pipeline: {error}")

    async def _be_what_is_said(self) -> None:
        """By the newest layout."""
        layout = None
        while True:
            layout = await self._member.door.layout_after(layout)
            if layout.head == self._member.placement:
                self._hosted.leave()
                await self._heading.take(layout, self._member.door, self._member.tell)
            elif self._heading.engine:
                await self._heading.end(f"{layout.head} is the head of this replica now.")
                await self._member.door.tell(serves="", number=0, lost="", reason="")
            if self._heading.engine or layout.head != self._member.placement:
                self._settled.set()


def _idle(folder: Path, options: Options, shape: ModelShape) -> EngineInfo:
    """What it is while it takes no requests."""
    return EngineInfo(
        model=options.served_name or folder.name,
        engine="layer-shard",
        engine_version=f"transformers {transformers.__version__}, torch {torch.__version__}",
        max_model_len=min(options.max_model_len or shape.longest_context, shape.longest_context),
        kv_block_size=BLOCK,
        kv_blocks=0,
        dtype=shape.dtype,
        memory_bytes=0,
        eos_token_ids=options.end_token_ids,
        max_running=options.max_num_seqs,
    )
