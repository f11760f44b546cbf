"""EngineService over gRPC: one engine's surface for its agent and for gateways.

Says how it is from the first moment; takes requests only while READY. Knows values, not protobuf (`wire.py`). Calls
have a connection of their own (`call_server.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager, suppress
from typing import Any, Final

import grpc
import grpc.aio

from deepinfer.engine_shim import wire
from deepinfer.engine_shim.pipeline_wire import layout_from_bytes, pipeline_state_to_bytes
from deepinfer.engine_shim.prompt_files import Piece, pieces_of
from deepinfer.engine_shim.state_watch import StateWatch
from deepinfer.engine_shim.state_wire import EngineState, state_to_bytes, watch_from_bytes
from deepinfer.engine_shim.status import ShimStatus
from deepinfer.engine_shim.token_engine import FinishReason
from deepinfer.engine_shim.wire import GenerateDelta, GenerateRequest, ShimInfo, ShimPhase
from deepinfer.fleet.errors import EngineFailed, InvalidRequest
from deepinfer.fleet.pipeline import Layout, PipelineState
from deepinfer.protos.engine_service import SERVICE

Context = grpc.aio.ServicerContext[Any, Any]

_OPTIONS: Final[tuple[tuple[str, Any], ...]] = (
    ("grpc.max_receive_message_length", wire.MESSAGE_BYTES),
    ("grpc.max_send_message_length", wire.MESSAGE_BYTES),
    ("grpc.so_reuseport", 0),  # else a second shim could be given the same port
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.http2.bdp_probe", 0),  # as in client.py
)


class EngineServer:
    """The service's methods and the state they share."""

    def __init__(self, status: ShimStatus) -> None:
        self._status = status

    async def get_info(self, request: None, context: Context) -> ShimInfo:
        return self._status.info()

    async def get_tokenizer(self, request: None, context: Context) -> AsyncGenerator[Piece, None]:
        files = await asyncio.to_thread(self._status.prompt_files)
        if files is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "What tokens a prompt will be cannot be foreseen.")
        else:
            for piece in pieces_of(files):
                yield piece

    async def generate(self, request: GenerateRequest, context: Context) -> AsyncGenerator[GenerateDelta, None]:
        engine = self._status.engine
        if engine is None or self._status.phase is not ShimPhase.READY:
            message = f"The engine takes no typed requests now ({self._status.phase})."
            await context.abort(grpc.StatusCode.UNAVAILABLE, message)
        try:
            with self._status.in_flight.one(), self._failing():
                async with aclosing(engine.generate(request)) as deltas:
                    async for delta in deltas:
                        yield delta
                        self._status.touch()
        except InvalidRequest as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except EngineFailed as error:
            yield GenerateDelta(finish_reason=FinishReason.ERROR, error=str(error))
        finally:
            self._status.touch()

    async def watch_state(self, kv: bool, context: Context) -> AsyncGenerator[EngineState, None]:
        async for state in StateWatch(self._status, kv=kv).states():
            yield state

    async def drain(self, timeout_seconds: float, context: Context) -> int:
        self._status.drain()
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, timeout_seconds)):
                await self._status.idle()
        return self._status.unfinished()

    async def set_layout(self, layout: Layout, context: Context) -> None:
        if self._status.pipeline is None:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "This engine is not part of a replica in stages.")
        await self._status.pipeline.set_layout(layout)

    async def watch_pipeline(self, request: None, context: Context) -> AsyncGenerator[PipelineState, None]:
        if self._status.pipeline is not None:
            async for state in self._status.pipeline.states():
                yield state

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """`EngineFailed` in the block as soon as the engine fails."""
        task = asyncio.current_task()
        reasons: list[str] = []

        def fail(reason: str) -> None:
            reasons.append(reason)
            if task is not None:
                task.cancel()

        forget = self._status.when_failed(fail)
        try:
            yield
        except asyncio.CancelledError:
            if reasons and task is not None and not task.uncancel():
                raise EngineFailed(reasons[0]) from None
            raise
        finally:
            forget()


def engine_server(status: ShimStatus) -> grpc.aio.Server:
    """A gRPC server with the service; ports are added and it is started by the caller."""
    service = EngineServer(status)
    methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "GetInfo": grpc.unary_unary_rpc_method_handler(service.get_info, wire.ignored, wire.info_to_bytes),
        "GetTokenizer": grpc.unary_stream_rpc_method_handler(service.get_tokenizer, wire.ignored, wire.piece_to_bytes),
        "Generate": grpc.unary_stream_rpc_method_handler(
            service.generate, wire.generate_from_bytes, wire.delta_to_bytes
        ),
        "WatchState": grpc.unary_stream_rpc_method_handler(service.watch_state, watch_from_bytes, state_to_bytes),
        "SetLayout": grpc.unary_unary_rpc_method_handler(service.set_layout, layout_from_bytes, wire.nothing),
        "WatchPipeline": grpc.unary_stream_rpc_method_handler(
            service.watch_pipeline, wire.ignored, pipeline_state_to_bytes
        ),
        "Drain": grpc.unary_unary_rpc_method_handler(service.drain, wire.drain_from_bytes, wire.unfinished_to_bytes),
    }
    server = grpc.aio.server(options=_OPTIONS)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
    return server
