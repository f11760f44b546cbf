"""How a gateway ends: who runs may end, who comes is told, who outlasts it is told and cancelled in the engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace

import httpx
import pytest

from deepinfer.control_plane.gateway.app import Gateway
from deepinfer.control_plane.gateway.drain import Drain
from deepinfer.control_plane.gateway.front_door import FrontDoor
from deepinfer.control_plane.gateway.parts import Parts
from deepinfer.control_plane.gateway.server import Listening, listening
from deepinfer.control_plane.router.replicas import Replicas
from deepinfer.engine_shim.frames import AnswerFrame, Body, End, EngineCall, Head
from tests.gateway_parts import fleet_of, management, until
from tests.hand_made_engine import hand_made_engine

BODY = {"model": "chat", "stream": True}
CHAT = "/v1/chat/completions"


@dataclass
class Ending:
    """A gateway whose one stream has begun when it is told to end, and what its engine sees."""

    url: str
    stream: httpx.Response
    kept: list[httpx.AsyncClient]  # with a connection each
    let_go: asyncio.Event
    cancelled: asyncio.Event
    ended: asyncio.Task[None]


@asynccontextmanager
async def ending(seconds: float) -> AsyncIterator[Ending]:
    let_go, cancelled = asyncio.Event(), asyncio.Event()

    async def answering(stream: int, call: EngineCall) -> AsyncIterator[AnswerFrame | bytes]:
        try:
            yield Head(stream, 200, ((b"content-type", b"text/event-stream"),))
            yield Body(stream, b'data: {"n": 1}\n\n')
            await let_go.wait()
            yield Body(stream, b"data: [DONE]\n\n")
            yield End(stream)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async with hand_made_engine(answering=answering) as engine, Replicas() as replicas, AsyncExitStack() as stack:
        drain = Drain(seconds, replicas.cut_off)
        server = AsyncExitStack()
        gateway = FrontDoor(Gateway(replace(Parts.plain(replicas), drain=drain), management()))
        port = await server.enter_async_context(listening(gateway, "127.0.0.1", 0, Listening(drain)))
        replicas.update(fleet_of(engine.endpoint))
        await until(lambda: replicas.candidates("chat"))
        url = f"http://127.0.0.1:{port}"
        clients = [await stack.enter_async_context(httpx.AsyncClient(base_url=url)) for _ in range(3)]
        for client in clients:
            assert (await client.get("/ready")).status_code == 200
        stream = await stack.enter_async_context(clients[2].stream("POST", CHAT, json=BODY))
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        ended = tasks.create_task(server.aclose())
        await until(lambda: drain.begun)
        yield Ending(url, stream, clients[:2], let_go, cancelled, ended)


async def test_what_runs_ends_and_what_is_new_is_refused() -> None:
    async with ending(seconds=20) as gateway:
        probe, client = gateway.kept
        ready, healthy = await probe.get("/ready"), await probe.get("/health")
        assert (ready.status_code, ready.json()["error"]["code"]) == (503, "gateway_ends")
        assert healthy.status_code == 200
        refused = await client.post(CHAT, json=BODY)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "gateway_ends")
        assert int(refused.headers["retry-after"]) > 0 and refused.headers["connection"] == "close"
        anthropics = await probe.post("/v1/messages", json=BODY)
        assert (anthropics.status_code, anthropics.json()["error"]["type"]) == (503, "overloaded_error")
        with pytest.raises(httpx.ConnectError):
            await client.get("/health")  # over a new connection: nobody listens any more
        assert not gateway.ended.done()
        gateway.let_go.set()
        assert (await gateway.stream.aread()).endswith(b"data: [DONE]\n\n")
        await gateway.ended


async def test_a_stream_that_outlasts_the_drain_is_told_and_cancelled() -> None:
    async with ending(seconds=0.2) as gateway:
        last = (await gateway.stream.aread()).removesuffix(b"\n\n").rpartition(b"\n\n")[2]
        assert b'"error"' in last and b"told to end" in last and b"drain_seconds" in last
        await gateway.cancelled.wait()
        await gateway.ended
