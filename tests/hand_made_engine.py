"""An engine whose answers a test writes by hand: for those that fail where no real one can be made to.

A real gRPC server and a real port for calls on loopback, in the test's own process. Well-behaved engines are real shims
(`sim_engine.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
from msgspec.structs import replace

from deepinfer.engine_shim import wire
from deepinfer.engine_shim.call_wire import HELLO, FrameReader, answer_to_bytes, call_from_bytes
from deepinfer.engine_shim.frames import AnswerFrame, Body, CallFrame, Cancel, End, EngineCall, Head, MoreBody, Open
from deepinfer.engine_shim.state_wire import EngineState, state_to_bytes
from deepinfer.engine_shim.token_engine import EngineLoad
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
    names: tuple[str, ...] = ("chat",)
    load: EngineLoad = field(default_factory=EngineLoad)
    _phase_changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    _coming: dict[int, EngineCall] = field(default_factory=dict)
    _server: grpc.aio.Server | None = None
    _calls: asyncio.Server | None = None
    _connections: set[asyncio.Task[None]] = field(default_factory=set)

    async def start(self, port: int = 0) -> None:
        options = (("grpc.so_reuseport", 0), ("grpc.http2.max_ping_strikes", 0))
        server = self._server = grpc.aio.server(options=options)
        server.add_generic_rpc_handlers((self._service(),))
        self.endpoint = f"127.0.0.1:{server.add_insecure_port(f'127.0.0.1:{port}')}"
        await server.start()
        self._calls = await asyncio.start_server(self._call, "127.0.0.1", 0)

    async def stop(self) -> None:
        """At once: its connections break, as if the process had died."""
        if self._server is not None and self._calls is not None:
            self._calls.close()
            for connection in self._connections:
                connection.cancel()
            await self._server.stop(None)

    async def becomes(self, phase: ShimPhase, names: tuple[str, ...] = ("chat",)) -> None:
        async with self._phase_changed:
            self.phase, self.names = phase, names
            self._phase_changed.notify_all()

    async def tells(self, load: EngineLoad) -> None:
        async with self._phase_changed:
            self.load = load
            self._phase_changed.notify_all()

    def _service(self) -> grpc.GenericRpcHandler[Any, Any]:
        handlers = {
            "GetInfo": grpc.unary_unary_rpc_method_handler(self._info, None, wire.info_to_bytes),
            "WatchState": grpc.unary_stream_rpc_method_handler(self._watch, None, state_to_bytes),
        }
        return grpc.method_handlers_generic_handler(METHODS["GetInfo"].split("/")[1], handlers)

    async def _info(self, request: bytes, context: Any) -> ShimInfo:
        self.identified += 1
        assert self._calls is not None
        port = self._calls.sockets[0].getsockname()[1]
        return ShimInfo(
            placement=self.placement,
            epoch=self.epoch,
            phase=self.phase,
            message="",
            endpoint=self.endpoint,
            pid=1,
            engine="hand-made",
            served_names=self.names,
            call_endpoint=f"127.0.0.1:{port}",
            call_key=b"key",
        )

    async def _watch(self, request: bytes, context: Any) -> AsyncIterator[EngineState]:
        while True:
            told = phase, names, load = self.phase, self.names, self.load
            yield EngineState(boot_epoch=1, sequence=0, snapshot=True, phase=phase, served_names=names, load=load)
            async with self._phase_changed:
                await self._phase_changed.wait_for(lambda told=told: (self.phase, self.names, self.load) != told)  # type: ignore[misc]

    async def _call(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        answering: set[asyncio.Task[None]] = set()
        frames = FrameReader()
        with suppress(ConnectionError, asyncio.CancelledError):
            while data := await reader.read(1 << 20):
                for kind, stream, content in frames.read(data):
                    if kind != HELLO:
                        self._take(call_from_bytes(kind, stream, content), answering, writer)
        for answer in answering:
            answer.cancel()
        self._connections.discard(task)
        writer.transport.abort()

    def _take(self, frame: CallFrame, answering: set[asyncio.Task[None]], writer: asyncio.StreamWriter) -> None:
        match frame:
            case Open(stream, call, whole):
                self._coming[stream] = call
                if whole:
                    answering.add(asyncio.create_task(self._answer(stream, writer)))
            case MoreBody(stream, data, last):
                call = self._coming[stream]
                self._coming[stream] = replace(call, body=call.body + data)
                if last:
                    answering.add(asyncio.create_task(self._answer(stream, writer)))
            case Cancel():
                self.cancelled.set()

    async def _answer(self, stream: int, writer: asyncio.StreamWriter) -> None:
        call = self._coming.pop(stream)
        self.calls.append(call)
        async for frame in self.answering(stream, call):
            writer.write(frame if isinstance(frame, bytes) else answer_to_bytes(frame))
            await asyncio.sleep(0)  # so that a piece is a piece to who reads


@asynccontextmanager
async def hand_made_engine(**fields: Any) -> AsyncIterator[HandMadeEngine]:
    engine = HandMadeEngine(**fields)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()
