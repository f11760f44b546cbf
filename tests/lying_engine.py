"""A simulated engine behind a shim's own service, in the test's process: whatever it says can be made wrong on its way.

What it computes is real, so what comes of a request tells what is true. Well-behaved ones are real shims
(`sim_engine.py`); those that compute nothing are `hand_made_engine.py`.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from deepinfer.engine_shim import wire
from deepinfer.engine_shim.call_server import taking_calls
from deepinfer.engine_shim.engine_args import sim_args
from deepinfer.engine_shim.engines.sim import SimEngine
from deepinfer.engine_shim.engines.sim_blocks import BlockCache
from deepinfer.engine_shim.engines.sim_start import started
from deepinfer.engine_shim.listening import add_loopback_port
from deepinfer.engine_shim.openai_app.app import openai_app
from deepinfer.engine_shim.served_engine import AsgiApp, Message, Receive, Scope, Send, ServedEngine
from deepinfer.engine_shim.server import EngineServer
from deepinfer.engine_shim.state_wire import EngineState, state_to_bytes, watch_from_bytes
from deepinfer.engine_shim.status import ShimStatus
from deepinfer.engine_shim.text_generation import TextGenerator
from deepinfer.engine_shim.typed_generation import typed_deltas
from deepinfer.fleet.launch import EngineLaunch
from deepinfer.fleet.spec import EngineKind
from deepinfer.protos.engine_service import SERVICE

Telling = Callable[[EngineState], Iterable[EngineState]]
"""What goes onto the wire in a message's place."""


def as_it_is(state: EngineState) -> Iterable[EngineState]:
    return (state,)


@dataclass
class LyingEngine:
    """Change `telling` (messages of WatchState) and `usage` (numbers in answers) at any time."""

    engine: SimEngine
    status: ShimStatus
    telling: Telling = as_it_is
    usage: dict[str, int] = field(default_factory=dict)
    watches: int = 0  # that were opened with its contents

    @property
    def endpoint(self) -> str:
        return self.status.endpoint

    @property
    def placement(self) -> str:
        return self.status.info().placement

    def resets_prefix_cache(self) -> None:
        """As vLLM does at /reset_prefix_cache. Nothing may run."""
        self.engine._cache = BlockCache(self.engine.info.kv_blocks, self.engine.kv)
        self.engine.kv.clear()

    def becomes_slower(self, times: float) -> None:
        args = self.engine._args
        self.engine._args = args.model_copy(
            update={
                "prefill_tokens_per_second": args.prefill_tokens_per_second / times,
                "seconds_per_output_token": args.seconds_per_output_token * times,
            }
        )

    def app(self, tells: AsgiApp) -> AsgiApp:
        async def lies(scope: Scope, receive: Receive, send: Send) -> None:
            async def sent(message: Message) -> None:
                for name, number in self.usage.items() if message.get("body") else ():
                    message["body"] = re.sub(
                        rb'"%s":\d+' % name.encode(), b'"%s":%d' % (name.encode(), number), message["body"]
                    )
                await send(message)

            await tells(scope, receive, sent)

        return lies


class _LyingServer(EngineServer):
    def __init__(self, liar: LyingEngine) -> None:
        super().__init__(liar.status)
        self._liar = liar

    async def watch_state(self, kv: bool, context: Any) -> AsyncGenerator[EngineState, None]:
        self._liar.watches += kv
        async for state in super().watch_state(kv, context):
            for told in self._liar.telling(state):
                yield told


def _server(liar: LyingEngine) -> grpc.aio.Server:
    service = _LyingServer(liar)
    methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "GetInfo": grpc.unary_unary_rpc_method_handler(service.get_info, wire.ignored, wire.info_to_bytes),
        "GetTokenizer": grpc.unary_stream_rpc_method_handler(service.get_tokenizer, wire.ignored, wire.piece_to_bytes),
        "WatchState": grpc.unary_stream_rpc_method_handler(service.watch_state, watch_from_bytes, state_to_bytes),
    }
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
    return server


@asynccontextmanager
async def lying_engine(replica: int = 0, **engine_args: Any) -> AsyncIterator[LyingEngine]:
    """Ready, as a replica of "chat" whose tokens are bytes. It tells the truth at first."""
    launch = EngineLaunch(
        placement=f"chat-aaaaa-{replica}",
        epoch=1,
        engine=EngineKind.SIM,
        served_names=("chat", "org/model"),
        model_path=None,
        device="cpu",
        engine_args=engine_args,
        socket=Path("unused"),
    )
    engine, tokenizer = await started("chat", None, sim_args(engine_args), None)
    status = ShimStatus(launch)
    liar = LyingEngine(engine, status)
    generator = TextGenerator(engine, tokenizer)
    served = ServedEngine(
        info=lambda: engine.info,
        app=liar.app(openai_app(generator, launch.served_names)),
        generate=partial(typed_deltas, generator),
        kv=engine.kv,
        load=engine.load,
        work_done=engine.work_done,
        broken=engine.broken,
        close=engine.close,
    )
    server = _server(liar)
    async with taking_calls(status, launch.host):
        status.endpoint = add_loopback_port(server, launch.host)
        await server.start()
        files = await asyncio.to_thread(status.prompt_files)
        status.prompt_digest = "" if files is None else files.digest
        status.ready(served)
        try:
            yield liar
        finally:
            await server.stop(None)
            await engine.close()


@asynccontextmanager
async def lying_engines(replicas: int, **engine_args: Any) -> AsyncIterator[list[LyingEngine]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(lying_engine(n, **engine_args)) for n in range(replicas)]
