"""Calls between a caller and an engine's application, over a real connection."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from deepinfer.engine_shim.call_wire import LARGEST_FRAME, hello, start
from deepinfer.engine_shim.frames import Body, Cancel, End, EngineCall, Failure, Head, MoreBody, Open
from deepinfer.engine_shim.served_engine import Receive, Scope, Send
from deepinfer.fleet.errors import EngineFailed
from tests.call_parts import KEY, bare_caller, caller_of, served

STREAMS, STEPS = 32, 10


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    message = await receive()
    headers = [(b"x-path", scope["path"].encode()), (b"X-Query", scope["query_string"])]
    await send({"type": "http.response.start", "status": 201, "headers": headers})
    await send({"type": "http.response.body", "body": message["body"]})


class Stepping:
    """Sends one piece to every request at each step; `cancelled` counts those that were stopped."""

    def __init__(self) -> None:
        self.cancelled = 0
        self._running: list[asyncio.Event] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        woken = asyncio.Event()
        self._running.append(woken)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"0", "more_body": True})
        try:
            while True:
                await woken.wait()
                woken.clear()
                await send({"type": "http.response.body", "body": b"token", "more_body": True})
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    async def step(self) -> None:
        for woken in self._running:
            woken.set()
        await asyncio.sleep(0.02)  # the next step of an engine is a while away


async def test_what_a_step_made_for_all_leaves_in_one_write() -> None:
    app = Stepping()
    async with served(app) as serving, caller_of(serving) as caller:
        answers = [caller.ask(EngineCall("GET", "/")) for _ in range(STREAMS)]
        for answer in answers:
            await answer.until_head()
        before = serving.writes
        for _ in range(STEPS):
            await app.step()
        assert serving.writes - before == STEPS
        assert [await anext(answer) for answer in answers] == [b"0" + b"token" * STEPS] * STREAMS


async def test_a_request_and_its_answer_arrive_as_they_were() -> None:
    async with served(echo) as serving, caller_of(serving) as caller:
        for size in (0, 1, 300_000, 5_000_000):
            answer = caller.ask(EngineCall("POST", "/a", b"q=1", ((b"x", b"y"),), b"\0" * size))
            assert await answer.read() == b"\0" * size
            assert (answer.status, answer.headers) == (201, ((b"x-path", b"/a"), (b"x-query", b"q=1")))


async def test_a_body_may_come_in_pieces() -> None:
    async with served(echo) as serving, bare_caller(serving.endpoint) as caller:
        opening = EngineCall("POST", "/", body=b"one ")
        caller.send(hello(KEY), Open(1, opening, whole=False), Open(2, opening, whole=False), Cancel(2))
        caller.send(MoreBody(1, b"two ", last=False), MoreBody(1, b"three", last=True))
        frames = await caller.frames(3)
        assert [type(frame) for frame in frames] == [Head, Body, End]
        assert frames[1] == Body(1, b"one two three")


async def test_an_application_s_bug_ends_its_own_answer_only() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/bug":
            raise KeyError("bug")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if scope["path"] == "/whole":
            await send({"type": "http.response.body", "body": b"ok"})

    async with served(app) as serving, bare_caller(serving.endpoint) as caller:
        opened = [Open(n, EngineCall("GET", path), whole=True) for n, path in enumerate(("/bug", "/whole", "/half"))]
        caller.send(hello(KEY), *opened)
        frames = await caller.frames(5)
    failures = {frame.stream: frame.message for frame in frames if isinstance(frame, Failure)}
    assert set(failures) == {0, 2}
    assert "KeyError" in failures[0]
    assert [f for f in frames if f is not None and f.stream == 1] == [Head(1, 200, ()), Body(1, b"ok"), End(1)]


async def test_cancelling_and_leaving_stop_the_application() -> None:
    app = Stepping()
    async with served(app) as serving:
        async with caller_of(serving) as caller:
            answers = [caller.ask(EngineCall("GET", "/")) for _ in range(3)]
            for answer in answers:
                await answer.until_head()
            answers[0].cancel()
            while app.cancelled != 1:  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.001)
        async with asyncio.timeout(5):
            while app.cancelled != 3:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        with pytest.raises(EngineFailed, match="the test is over"):
            await answers[1].read()
        with pytest.raises(EngineFailed, match="the test is over"):
            await caller.ask(EngineCall("GET", "/")).until_head()


@pytest.mark.parametrize("leaving", ["cancelled", "gone"])
async def test_an_application_that_listens_for_its_client_s_leaving_ends_its_own_tasks(leaving: str) -> None:
    """As vLLM does it: its work is a task that a cancelled parent would leave behind."""
    ended = asyncio.Event()

    async def works() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        work = asyncio.create_task(works())
        assert await receive() == {"type": "http.disconnect"}
        work.cancel()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"for nobody"})

    async with served(app) as serving, bare_caller(serving.endpoint) as caller, asyncio.timeout(3):
        caller.send(hello(KEY), Open(1, EngineCall("GET", "/"), whole=True))
        while not (serving.connections and serving.connections[0].tasks):  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.001)
        if leaving == "cancelled":
            caller.send(Cancel(1))
        else:
            serving.connections[0].close()
        await ended.wait()


@pytest.mark.parametrize(
    "said",
    [
        hello(b"another's key"),
        b"GET / HTTP/1.1\r\n\r\n",
        hello(KEY) + start(99, 1, 0),
        hello(KEY) + start(1, 1, 3) + b"\xff\xff\xff",
        hello(KEY) + start(3, 1, LARGEST_FRAME + 1),
        hello(KEY) + start(5, 1, 1) + b"\0",
    ],
    ids=["another key", "HTTP", "an unknown kind", "a broken head", "a huge frame", "a broken credit"],
)
async def test_who_does_not_speak_so_is_not_answered(said: bytes) -> None:
    async with served(echo) as serving, bare_caller(serving.endpoint) as caller:
        caller.send(said, Open(1, EngineCall("GET", "/"), whole=True))
        with suppress(ConnectionResetError):  # with something unread it ends so
            assert await caller.frame() is None
