"""An EngineService whose answers a test writes by hand: for engines that fail where no real one can be made to.

A real gRPC server on loopback, in the test's own process. Well-behaved engines are real shims (`sim_engine.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio

from deepinfer.engine_shim import wire
from deepinfer.engine_shim.frames import AnswerFrame, Body, Cancel, End, EngineCall, Head, Open
from deepinfer.engine_shim.state_wire import EngineState, state_to_bytes
from deepinfer.engine_shim.wire import METHODS, ShimInfo, ShimPhase

Answering = Callable[[int, EngineCall], AsyncIterator[AnswerFrame | bytes]]
"""The frames of one answer; raw bytes go onto the wire as they are."""


def answers(*pieces: bytes, status: int = 200, content_type: bytes = b"application/json") -> Answering:
    """A whole answer in these pieces."""

    async def answering(stream: int, call: EngineCall) -> AsyncIterator[AnswerFrame]:
        yield Head(stream, status, ((b"content-type", content_type),))
        for piece in pieces:
            yield Body(stream, piece)
        yield End(stream)

    return answering


@dataclass
class HandMadeEngine:
    """Change `answering` and `state` at any time; `calls` and `cancelled` tell what came."""

    placement: str = "chat-aaaaa-0"
    epoch: int = 1
    answering: Answering = field(default_factory=lambda: answers(b"{}"))
    endpoint: str = ""
    calls: list[EngineCall] = field(default_factory=list)
    identified: int = 0  # how often it was asked who it is
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    phase: ShimPhase = ShimPhase.READY
    _phase_changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    _writing: asyncio.Lock = field(default_factory=asyncio.Lock)  # gRPC takes one message of a stream at a time
    _server: grpc.aio.Server | None = None

    async def start(self, port: int = 0) -> None:
        options = (("grpc.so_reuseport", 0), ("grpc.http2.max_ping_strikes", 0))
        server = self._server = grpc.aio.server(options=options)
        server.add_generic_rpc_handlers((self._service(),))
        self.endpoint = f"127.0.0.1:{server.add_insecure_port(f'127.0.0.1:{port}')}"
        await server.start()

    async def stop(self) -> None:
        """At once: its connections break, as if the process had died."""
        if self._server is not None:
            await self._server.stop(None)

    async def becomes(self, phase: ShimPhase) -> None:
        async with self._phase_changed:
            self.phase = phase
            self._phase_changed.notify_all()

    def _service(self) -> grpc.GenericRpcHandler[Any, Any]:
        handlers = {
            "GetInfo": grpc.unary_unary_rpc_method_handler(self._info, None, wire.info_to_bytes),
            "WatchState": grpc.unary_stream_rpc_method_handler(self._watch, None, state_to_bytes),
            "Call": grpc.stream_stream_rpc_method_handler(self._call, wire.call_frames_from_bytes, _to_wire),
        }
        return grpc.method_handlers_generic_handler(METHODS["Call"].split("/")[1], handlers)

    async def _info(self, request: bytes, context: Any) -> ShimInfo:
        self.identified += 1
        return ShimInfo(self.placement, self.epoch, self.phase, "", self.endpoint, 1, "hand-made", ("chat",))

    async def _watch(self, request: bytes, context: Any) -> AsyncIterator[EngineState]:
        while True:
            phase = self.phase
            yield EngineState(boot_epoch=1, sequence=0, snapshot=True, phase=phase)
            async with self._phase_changed:
                await self._phase_changed.wait_for(lambda told=phase: self.phase is not told)  # type: ignore[misc]

    async def _call(self, requests: AsyncIterator[list[Any]], context: Any) -> None:
        async with asyncio.TaskGroup() as tasks:
            async for frames in requests:
                for frame in frames:
                    match frame:
                        case Open(stream, call, _):
                            self.calls.append(call)
                            tasks.create_task(self._answer(stream, call, context))
                        case Cancel():
                            self.cancelled.set()

    async def _answer(self, stream: int, call: EngineCall, context: Any) -> None:
        async for frame in self.answering(stream, call):
            async with self._writing:
                await context.write(frame)


def _to_wire(frame: AnswerFrame | bytes) -> bytes:
    return frame if isinstance(frame, bytes) else wire.answer_frames_to_bytes([frame])


@asynccontextmanager
async def hand_made_engine(**fields: Any) -> AsyncIterator[HandMadeEngine]:
    engine = HandMadeEngine(**fields)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()
