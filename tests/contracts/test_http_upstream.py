"""Calls by HTTP to an engine's own server: a real uvicorn, as vLLM's is, and our client, sidecar and gateway."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace

import pytest

from deepinfer.engine_shim import http_upstream
from deepinfer.engine_shim.client import EngineClient
from deepinfer.engine_shim.frames import FRAME_BYTES, WINDOW_BYTES, EngineCall
from deepinfer.engine_shim.http_upstream import MOST_IDLE
from deepinfer.engine_shim.served_engine import Receive, Scope, Send
from deepinfer.engine_shim.wire import ShimPhase
from deepinfer.fleet.errors import EngineFailed
from tests.gateway_parts import fleet_of, running_gateway, until
from tests.http_parts import HttpServer, body, http_server, start
from tests.shim_in_process import Shim, shim_over

GET = EngineCall("GET", "/")
PIECE = b"x" * (64 << 10)
EVENTS = ((b"content-type", b"text/event-stream"),)


async def whole_body(receive: Receive) -> bytes:
    whole = b""
    more = True
    while more:
        message = await receive()
        whole += message.get("body", b"")
        more = message.get("more_body", False)
    return whole


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with the body it got; its own headers tell the rest of the request."""
    data = await whole_body(receive)
    said = {name.decode(): value.decode() for name, value in scope["headers"]}
    said |= {"": f"{scope['method']} {scope['path']} {scope['query_string'].decode()}"}
    headers = ((b"content-length", b"%d" % len(data)), (b"X-Said", json.dumps(said).encode()))
    await start(send, 201, headers)
    await body(send, data)


@dataclass
class Streams:
    """One stream of events for each call: the test says what comes, last b"". `gone` counts callers that hung up."""

    gone: int = 0
    running: list[asyncio.Queue[bytes | None]] = field(default_factory=list)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await whole_body(receive)
        coming: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.running.append(coming)
        await start(send, headers=EVENTS)
        await body(send, b"data: 0\n\n", more=True)
        hanging_up = asyncio.ensure_future(receive())  # as starlette waits for it
        hanging_up.add_done_callback(lambda _: coming.put_nowait(None))
        while piece := await coming.get():
            await body(send, piece, more=True)
        self.gone += piece is None
        await body(send, b"")


@pytest.mark.parametrize("size", [0, 1, 300_000, 5_000_000])
async def test_a_call_and_its_answer_arrive_as_they_were(size: int) -> None:
    async with http_server(echo) as server:
        headers = ((b"x-request-id", b"7"), (b"content-type", b"a/b"), (b"host", b"no"), (b"content-length", b"9"))
        call = EngineCall("POST", "/a b/é?%", b"q=%20", headers, b"\0" * size)
        answer = await server.upstream.call(call)
        assert await answer.read() == call.body
        kept = dict(answer.headers)
        assert (answer.status, kept[b"content-length"]) == (201, b"%d" % size)
        assert json.loads(kept[b"x-said"]) == {
            "": "POST /a b/é?% q=%20",
            "host": server.endpoint,
            "x-request-id": "7",
            "content-type": "a/b",
            "content-length": str(size),
        }


async def test_a_stream_comes_as_it_is_made_and_without_its_transfer_encoding() -> None:
    app = Streams()
    async with http_server(app) as server:
        answer = await server.upstream.call(GET)
        assert [name for name, _ in answer.headers if name != b"date"] == [b"content-type"]
        assert await anext(answer) == b"data: 0\n\n"
        for number in range(1, 4):
            app.running[0].put_nowait(b"data: %d\n\n" % number)
            assert await anext(answer) == b"data: %d\n\n" % number
        app.running[0].put_nowait(b"")
        assert await answer.read() == b""


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("GET", 204), ("GET", 304)])
async def test_answers_without_a_body_end_at_their_head(method: str, status: int) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await start(send, status, () if status == 204 else ((b"content-length", b"5"),))
        await body(send, b"hello" if method == "HEAD" else b"")

    async with http_server(app) as server:
        for _ in range(2):
            answer = await server.upstream.call(EngineCall(method, "/"))
            assert (answer.status, await answer.read()) == (status, b"")


async def test_a_connection_is_used_again_and_another_made_only_for_calls_at_once() -> None:
    async with http_server(echo) as server:
        for _ in range(5):
            await (await server.upstream.call(GET)).read()
        assert len(set(server.callers)) == 1
        many = 2 * MOST_IDLE
        for answer in await asyncio.gather(*(server.upstream.call(GET) for _ in range(many))):
            await answer.read()
        assert len(set(server.callers)) == many
        for answer in await asyncio.gather(*(server.upstream.call(GET) for _ in range(many))):
            await answer.read()
        assert len(set(server.callers)) == 2 * many - MOST_IDLE  # so many were kept


async def test_a_connection_that_waited_too_long_is_not_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_upstream, "IDLE_SECONDS", -1.0)  # every wait is too long
    async with http_server(echo) as server:
        for _ in range(3):
            await (await server.upstream.call(GET)).read()
        assert len(set(server.callers)) == 3


async def test_a_cancelled_answer_hangs_up_on_the_engine_and_on_no_other_call() -> None:
    app = Streams()
    async with http_server(app) as server:
        first, second = await server.upstream.call(GET), await server.upstream.call(GET)
        first.cancel()
        first.cancel()
        await until(lambda: app.gone == 1)
        app.running[1].put_nowait(b"")
        assert await second.read() == b"data: 0\n\n"


async def test_a_caller_that_gives_up_before_the_head_hangs_up_too() -> None:
    came, left = asyncio.Event(), asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        came.set()
        assert (await receive())["type"] == "http.disconnect"
        left.set()

    async with http_server(app) as server:
        calling = asyncio.create_task(server.upstream.call(GET))
        await came.wait()
        calling.cancel()
        await left.wait()


class Generous:
    """Gives twenty windows in pieces; `given` counts the bytes that the server's flow control let out of its hands."""

    given = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await start(send)
        for _ in range(20 * WINDOW_BYTES // len(PIECE)):
            await body(send, PIECE, more=True)
            self.given += len(PIECE)
        await body(send, b"")


async def test_an_answer_that_is_not_read_makes_the_engine_wait_and_fills_no_memory() -> None:
    app = Generous()
    async with http_server(app) as server:
        unread = await server.upstream.call(GET)
        for _ in range(3):
            assert len(await (await server.upstream.call(GET)).read()) == 20 * WINDOW_BYTES
        given = app.given
        assert given < 80 * WINDOW_BYTES  # the unread one has not been given whole
        first = await anext(unread)
        assert WINDOW_BYTES <= len(first) <= WINDOW_BYTES + FRAME_BYTES
        assert len(first) + len(await unread.read()) == 20 * WINDOW_BYTES
        assert len(await (await server.upstream.call(GET)).read()) == 20 * WINDOW_BYTES


async def test_a_poured_answer_waits_for_its_client_to_drain() -> None:
    not_drained = most = total = 0

    def write(piece: bytes) -> None:
        nonlocal not_drained, most, total
        not_drained, total = not_drained + len(piece), total + len(piece)
        most = max(most, not_drained)

    async def drained() -> None:
        nonlocal not_drained
        await asyncio.sleep(0.001)  # a client that takes its time
        not_drained = 0

    async with http_server(Generous()) as server:
        await (await server.upstream.call(GET)).pour(write, drained)
    assert total == 20 * WINDOW_BYTES
    assert most <= WINDOW_BYTES + FRAME_BYTES


@dataclass
class Beside:
    """A server, the sidecar that speaks for it, and a client of both."""

    app: Streams
    server: HttpServer
    shim: Shim
    client: EngineClient
    stop_shim: AsyncExitStack


@asynccontextmanager
async def sidecar() -> AsyncIterator[Beside]:
    app = Streams()
    async with http_server(app) as server, AsyncExitStack() as stop_shim:
        shim = await stop_shim.enter_async_context(shim_over(_nobody, server.endpoint))
        client = EngineClient(shim.status.endpoint, only=("chat-aaaaa-0", 1))
        try:
            yield Beside(app, server, shim, client, stop_shim)
        finally:
            await client.close()


async def _nobody(scope: Scope, receive: Receive, send: Send) -> None:
    raise AssertionError("a call went through the sidecar")


async def watched(client: EngineClient, phases: list[ShimPhase]) -> None:
    async for state in client.watch():
        phases.append(state.phase)


async def watched_once(client: EngineClient) -> None:
    async with aclosing(client.watch()) as states:  # type: ignore[type-var]
        await anext(states)


async def test_the_sidecar_s_end_ends_no_answer_but_the_next_call_asks_who_is_there() -> None:
    async with sidecar() as beside:
        answer = await beside.client.call(GET)
        phases: list[ShimPhase] = []
        watching = asyncio.create_task(watched(beside.client, phases))
        await until(lambda: phases)
        await beside.stop_shim.aclose()
        await asyncio.wait([watching])
        beside.app.running[0].put_nowait(b"data: still\n\n")
        assert await anext(answer) == b"data: 0\n\n"
        assert await anext(answer) == b"data: still\n\n"
        with pytest.raises(EngineFailed):
            await beside.client.call(GET)
        beside.app.running[0].put_nowait(b"")
        assert await answer.read() == b""
        assert len(beside.server.callers) == 1


async def test_a_watch_that_ended_costs_one_question_and_no_connection() -> None:
    async with sidecar() as beside:
        first = await beside.client.call(GET)
        await watched_once(beside.client)
        beside.app.running[0].put_nowait(b"")
        await first.read()
        second = await beside.client.call(GET)
        assert len(set(beside.server.callers)) == 1
        second.cancel()


async def test_a_server_that_moved_is_followed_and_the_old_one_s_answers_end() -> None:
    async with sidecar() as beside, http_server(echo) as moved:
        old = await beside.client.call(GET)
        engine = beside.shim.status.engine
        assert engine is not None
        beside.shim.status.engine = replace(engine, http_endpoint=moved.endpoint)
        await watched_once(beside.client)
        assert (await beside.client.call(GET)).status == 201
        await anext(old)
        with pytest.raises(EngineFailed, match=f"its server is at {moved.endpoint} now"):
            await anext(old)


async def test_another_server_in_the_same_place_gets_its_own_key() -> None:
    async with sidecar() as beside, http_server(echo) as server:
        engine = beside.shim.status.engine
        assert engine is not None
        for key in (b"first", b"second"):
            beside.shim.status.engine = replace(engine, http_endpoint=server.endpoint, http_key=key)
            await watched_once(beside.client)
            said = json.loads(dict((await beside.client.call(GET)).headers)[b"x-said"])
            assert said["authorization"] == f"Bearer {key.decode()}"


async def test_a_failed_engine_fails_every_open_answer_with_its_reason() -> None:
    async with sidecar() as beside:
        answers = [await beside.client.call(GET) for _ in range(3)]
        phases: list[ShimPhase] = []
        watching = asyncio.create_task(watched(beside.client, phases))
        await until(lambda: phases)
        beside.shim.status.fail("out of memory")
        for answer in answers:
            with pytest.raises(EngineFailed, match=r"The engine at .* failed: out of memory\."):
                await answer.read()
        await until(lambda: beside.app.gone == 3)
        watching.cancel()


async def test_closing_the_client_fails_every_open_answer() -> None:
    async with sidecar() as beside:
        answer = await beside.client.call(GET)
        await beside.client.close()
        with pytest.raises(EngineFailed, match="this side closed the connection"):
            await answer.read()
        with pytest.raises(EngineFailed, match="is closed"):
            await beside.client.call(GET)
        await until(lambda: beside.app.gone == 1)


async def test_through_the_gateway_a_stream_arrives_whole_and_credentials_stay_behind() -> None:
    seen: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope)
        await whole_body(receive)
        await start(send, headers=EVENTS)
        for piece in (b"data: 1\n\n", b"data: 2\n\n", b"data: [DONE]\n\n"):
            await body(send, piece, more=True)
        await body(send, b"")

    async with (
        http_server(app) as server,
        shim_over(_nobody, server.endpoint) as shim,
        running_gateway(fleet_of(shim.status.endpoint)) as gateway,
    ):
        await until(lambda: gateway.replicas.candidates("chat"))
        secrets = {
            "authorization": "Bearer s",
            "proxy-authorization": "s",
            "cookie": "s",
            "x-api-key": "s",
            "api-key": "s",
        }
        gateway.http.headers.update({**secrets, "x-mine": "1"})
        answer = await gateway.ask(stream=True)
    assert answer.text == "data: 1\n\ndata: 2\n\ndata: [DONE]\n\n"
    assert answer.headers["content-type"] == "text/event-stream"
    sent = dict(seen[0]["headers"])
    assert sent[b"x-mine"] == b"1"
    assert not {name.encode() for name in secrets} & sent.keys()
