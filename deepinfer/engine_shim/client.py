"""An engine, seen from the agent or a gateway.

All `call`s of a client go one way, which GetInfo tells (`upstream.py`), all else is gRPC. A client belongs to the event
loop it was made on. It connects when first used and again after a failure; what failed is never tried again here,
because only the caller knows whether that is safe.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any, Final

import grpc
import grpc.aio

from deepinfer.engine_shim import wire
from deepinfer.engine_shim.answer import Answer
from deepinfer.engine_shim.call_stream import connected
from deepinfer.engine_shim.frames import EngineCall
from deepinfer.engine_shim.http_upstream import HttpUpstream
from deepinfer.engine_shim.pipeline_wire import layout_to_bytes, pipeline_state_from_bytes
from deepinfer.engine_shim.prompt_files import PromptFiles, joined
from deepinfer.engine_shim.state_wire import EngineState, state_from_bytes, watch_to_bytes
from deepinfer.engine_shim.upstream import Upstream, failed
from deepinfer.engine_shim.wire import METHODS, GenerateDelta, GenerateRequest, ShimInfo, ShimPhase
from deepinfer.fleet.errors import EngineFailed, EngineUnreachable, InvalidRequest
from deepinfer.fleet.pipeline import Layout, PipelineState

__all__ = [
    "Answer",
    "EngineCall",
    "EngineClient",
    "EngineState",
    "GenerateDelta",
    "GenerateRequest",
    "ShimInfo",
    "ShimPhase",
]

_OPTIONS: Final[tuple[tuple[str, Any], ...]] = (
    ("grpc.max_receive_message_length", wire.MESSAGE_BYTES),
    ("grpc.max_send_message_length", wire.MESSAGE_BYTES),
    ("grpc.use_local_subchannel_pool", 1),  # or two clients of one process would share a connection and its fate
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),  # what one try to connect has: a busy shim may take long to answer
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.enable_retries", 0),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),  # the one that counts: its default is a minute
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.enable_http_proxy", 0),  # engines are never behind the proxy of the environment
    ("grpc.http2.bdp_probe", 0),  # a ping with every message would wake both sides once more
)


class EngineClient:
    """`target` is "host:port" or "unix:/path". With `only`, a placement and its epoch, no other engine is called."""

    def __init__(self, target: str, only: tuple[str, int] | None = None) -> None:
        self.target = target
        self._only = only
        self._channel = grpc.aio.insecure_channel(target, options=_OPTIONS)
        self._info = self._channel.unary_unary(METHODS["GetInfo"], wire.nothing, wire.info_from_bytes)
        self._tokenizer = self._channel.unary_stream(METHODS["GetTokenizer"], wire.nothing, wire.piece_from_bytes)
        self._watch = self._channel.unary_stream(METHODS["WatchState"], watch_to_bytes, state_from_bytes)
        self._drain = self._channel.unary_unary(METHODS["Drain"], wire.drain_to_bytes, wire.unfinished_from_bytes)
        self._generate = self._channel.unary_stream(METHODS["Generate"], wire.generate_to_bytes, wire.delta_from_bytes)
        self._layout = self._channel.unary_unary(METHODS["SetLayout"], layout_to_bytes, wire.ignored)
        self._pipeline = self._channel.unary_stream(METHODS["WatchPipeline"], wire.nothing, pipeline_state_from_bytes)
        self._upstream: Upstream | None = None
        self._connecting = asyncio.Lock()
        self._closed = False

    async def info(self, *, timeout_seconds: float = 5.0, wait_for_ready: bool = False) -> ShimInfo:
        """Who answers there. With `wait_for_ready`, waits for somebody to answer until the timeout."""
        with self._failures():
            info: ShimInfo = await self._info(None, timeout=timeout_seconds, wait_for_ready=wait_for_ready)
            return info

    async def prompt_files(self, digest: str, *, timeout_seconds: float = 60.0) -> PromptFiles:
        """Those of which GetInfo told the digest; `EngineFailed` when they are not there any more."""
        with self._failures():
            sent = self._tokenizer(None, timeout=timeout_seconds)
            files = joined([piece async for piece in sent])
        if files.digest != digest:
            raise EngineFailed(failed(self.target, "the files of its tokenizer are not those it was started with"))
        return files

    def ask(self, call: EngineCall) -> Answer | None:
        """Send it now; its answer fills as the engine makes it. None if there is no connection for it yet."""
        upstream = self._upstream
        return None if upstream is None or not upstream.usable else upstream.ask(call)

    async def call(self, call: EngineCall, asked: Answer | None = None) -> Answer:
        """The answer, once its head is there; `EngineFailed` when the engine fails before that.

        `asked`: what `ask` gave for it.
        """
        upstream = self._upstream
        if upstream is None or (asked is None and not upstream.usable):
            upstream = await self._reached()
        return await upstream.call(call, asked)

    async def watch(self, *, kv: bool = False) -> AsyncIterator[EngineState]:
        """A snapshot, then changes, until the connection breaks (`EngineFailed`) or the shim ends (it ends).

        With `kv` also of what its KV cache holds, which costs both sides work for every block.
        """
        states, failure = self._watch(kv), ""
        try:
            with self._failures():
                async for state in states:
                    if state.phase is ShimPhase.FAILED and self._upstream is not None:
                        self._upstream.engine_failed(state.message)
                    yield state
        except EngineFailed as error:
            failure = str(error)
            raise
        finally:
            states.cancel()
            if self._upstream is not None:
                self._upstream.watch_ended(failure)

    async def drain(self, timeout_seconds: float) -> int:
        """The engine takes nothing new from now on; the answer is how many requests were unfinished at the timeout."""
        with self._failures():
            unfinished: int = await self._drain(timeout_seconds, timeout=timeout_seconds + 5.0)
            return unfinished

    async def set_layout(self, layout: Layout, *, timeout_seconds: float = 5.0) -> None:
        """To a replica's head: which stages it has from now on. It need not have them when this returns."""
        with self._failures():
            await self._layout(layout, timeout=timeout_seconds)

    async def pipeline_states(self) -> AsyncIterator[PipelineState]:
        """How a head or a host of a stage is, and every change; it ends at once where there are no stages."""
        states = self._pipeline(None, wait_for_ready=True)
        try:
            with self._failures():
                async for state in states:
                    yield state
        finally:
            states.cancel()

    async def generate(self, request: GenerateRequest) -> AsyncIterator[GenerateDelta]:
        """Typed deltas until one has a finish reason; `InvalidRequest`. Closing the iterator aborts in the engine."""
        deltas = self._generate(request)
        try:
            with self._failures():
                async for delta in deltas:
                    yield delta
        finally:
            deltas.cancel()

    def cut_off(self, message: str) -> None:
        """Every open call fails with this message, and there are no others."""
        self._closed = True
        if self._upstream is not None:
            self._upstream.close(message)

    async def close(self) -> None:
        self.cut_off(failed(self.target, "this side closed the connection"))
        await self._channel.close(None)

    async def _reached(self) -> Upstream:
        try:
            return await self._connected()
        except EngineFailed as error:
            raise EngineUnreachable(str(error)) from error

    async def _connected(self) -> Upstream:
        async with self._connecting:
            if self._closed:
                raise EngineFailed(f"The connection to the engine at {self.target} is closed.")
            if self._upstream is None or not self._upstream.usable:
                info = await self.info()
                if self._only is not None and (info.placement, info.epoch) != self._only:
                    raise EngineFailed(f"At {self.target} answers {info.placement} epoch {info.epoch} now.")
                self._upstream = await self._upstream_to(info)
                if self._closed:  # meanwhile
                    self._upstream.close(failed(self.target, "this side closed the connection"))
            return self._upstream

    async def _upstream_to(self, info: ShimInfo) -> Upstream:
        if not info.http_endpoint:
            return await connected(info.call_endpoint, info.call_key, self.target)
        current = self._upstream
        if isinstance(current, HttpUpstream):
            if current.is_still(info.http_endpoint, info.call_key):
                return current
            current.close(failed(self.target, f"its server is at {info.http_endpoint} now"))
        return HttpUpstream(info.http_endpoint, self.target, info.call_key)

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """gRPC's errors as ours. A call that `close` ended looks to its caller as if his own task were cancelled."""
        try:
            yield
        except grpc.RpcError as error:
            if isinstance(error, grpc.aio.AioRpcError) and error.code() is grpc.StatusCode.INVALID_ARGUMENT:
                raise InvalidRequest(error.details()) from error
            raise EngineFailed(failed(self.target, _reason(error))) from error
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not self._closed or (task is not None and task.cancelling()):
                raise
            raise EngineFailed(f"The connection to the engine at {self.target} is closed.") from None


def _reason(error: grpc.RpcError) -> str:
    """gRPC's own words, in one line."""
    if not isinstance(error, grpc.aio.AioRpcError):
        return str(error)
    return f"{error.code().name.lower()}: {' '.join((error.details() or '').split())}".rstrip(": ")
