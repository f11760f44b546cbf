"""A real shim's servers in the test's own process, over an ASGI application that the test wrote."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from deepinfer.engine_shim.call_server import taking_calls
from deepinfer.engine_shim.kv_contents import KvContents
from deepinfer.engine_shim.listening import add_loopback_port
from deepinfer.engine_shim.served_engine import AsgiApp, ServedEngine
from deepinfer.engine_shim.server import engine_server
from deepinfer.engine_shim.status import ShimStatus
from deepinfer.engine_shim.token_engine import EngineInfo, EngineLoad
from deepinfer.engine_shim.wire import GenerateDelta, GenerateRequest
from deepinfer.fleet.errors import EngineFailed
from deepinfer.fleet.launch import EngineLaunch
from deepinfer.fleet.spec import EngineKind


@dataclass
class Shim:
    """`names` are served besides "chat"; call `status.touch` after changing them."""

    status: ShimStatus
    names: tuple[str, ...] = ()


def engine_over(app: AsgiApp, kv: KvContents, names: Callable[[], tuple[str, ...]] = tuple) -> ServedEngine:
    """An engine with an application and a KV cache that tests fill, and nothing that computes."""

    async def close() -> None:
        return

    async def broken() -> str:
        await asyncio.Event().wait()
        return "never"

    return ServedEngine(
        info=_info,
        app=app,
        generate=_no_tokens,
        kv=kv,
        load=EngineLoad,
        work_done=lambda: 0,
        broken=broken,
        close=close,
        names=names,
    )


async def _no_tokens(request: GenerateRequest) -> AsyncGenerator[GenerateDelta, None]:
    raise EngineFailed("This engine has an application only.")
    yield GenerateDelta()


def _info() -> EngineInfo:
    return EngineInfo(
        model="chat",
        engine="test",
        engine_version="1",
        max_model_len=100,
        kv_block_size=16,
        kv_blocks=4096,
        dtype="",
        memory_bytes=0,
    )


@asynccontextmanager
async def shim_over(app: AsgiApp, http_endpoint: str = "") -> AsyncIterator[Shim]:
    """Ready, as the first replica of "chat". With an `http_endpoint` it is the sidecar of a server there."""
    launch = EngineLaunch(
        placement="chat-aaaaa-0",
        epoch=1,
        engine=EngineKind.SIM,
        served_names=("chat", "org/model"),
        model_path=None,
        device="cpu",
        socket=Path("unused"),
    )
    shim = Shim(ShimStatus(launch))
    server = engine_server(shim.status)
    async with taking_calls(shim.status, launch.host):
        shim.status.endpoint = add_loopback_port(server, launch.host)
        await server.start()
        engine = engine_over(app, KvContents(1), lambda: shim.names)
        shim.status.ready(replace(engine, http_endpoint=http_endpoint))
        try:
            yield shim
        finally:
            await server.stop(None)
