"""Who reads slowly costs a bounded amount of memory, on either end, and nobody else's time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from deepinfer.engine_shim.answer import Answer
from deepinfer.engine_shim.call_connection import CallConnection
from deepinfer.engine_shim.frames import AnswerFrame, Body, CallFrame, End, EngineCall, Failure, Head, Open
from deepinfer.engine_shim.served_engine import Receive, Scope, Send
from deepinfer.fleet.errors import EngineFailed

PIECE = b"x" * (256 << 10)


async def test_an_answer_nobody_reads_is_cancelled_past_its_bound() -> None:
    cancelled: list[bool] = []
    answer = Answer(lambda: cancelled.append(True), buffered_bytes=10)
    answer.take(Head(1, 200, ()))
    answer.take(Body(1, b"0123456789"))
    answer.take(Body(1, b"more"))  # no more than the bound waits, so this is still taken
    assert not cancelled
    answer.take(Body(1, b"too much"))
    answer.take(Body(1, b"late"))
    assert cancelled == [True]
    assert await anext(answer) == b"0123456789more"
    with pytest.raises(EngineFailed, match="read too slowly"):
        await anext(answer)


async def test_an_answer_that_is_read_may_be_of_any_length() -> None:
    answer = Answer(lambda: pytest.fail("cancelled"), buffered_bytes=10)
    for _ in range(100):
        answer.take(Body(1, b"0123456789"))
        assert await anext(answer) == b"0123456789"
    answer.take(End(1))
    with pytest.raises(StopAsyncIteration):
        await anext(answer)


async def test_a_failure_comes_after_what_came_before_it() -> None:
    answer = Answer(lambda: None)
    answer.take(Body(1, b"half"))
    answer.take(Failure(1, "out of memory"))
    assert await anext(answer) == b"half"
    with pytest.raises(EngineFailed, match="out of memory"):
        await anext(answer)


async def test_an_application_waits_while_its_peer_does_not_read() -> None:
    given = 0
    read, blocked = asyncio.Event(), asyncio.Event()
    got: list[AnswerFrame] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal given
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(40):
            await send({"type": "http.response.body", "body": PIECE, "more_body": True})
            given += 1
        await send({"type": "http.response.body", "body": b""})

    async def write(frames: list[AnswerFrame]) -> None:
        blocked.set()
        await read.wait()
        got.extend(frames)

    async def requests() -> AsyncIterator[list[CallFrame]]:
        yield [Open(1, EngineCall("GET", "/"), whole=True)]

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(CallConnection(app, write).serve(requests()))
        await blocked.wait()
        for _ in range(100):  # turns of the loop: whatever could go on without the peer has gone on after them
            await asyncio.sleep(0)
        assert given <= 5  # 1 MiB, and the piece that passed it
        read.set()
    assert sum(len(frame.data) for frame in got if isinstance(frame, Body)) == 40 * len(PIECE)
    assert isinstance(got[-1], End)


async def test_an_application_s_bug_ends_its_own_answer_only() -> None:
    got: list[AnswerFrame] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/bug":
            raise KeyError("bug")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if scope["path"] == "/whole":
            await send({"type": "http.response.body", "body": b"ok"})

    async def write(frames: list[AnswerFrame]) -> None:
        got.extend(frames)

    async def requests() -> AsyncIterator[list[CallFrame]]:
        yield [Open(n, EngineCall("GET", path), whole=True) for n, path in enumerate(("/bug", "/whole", "/half"))]

    await CallConnection(app, write).serve(requests())
    failures = {frame.stream: frame.message for frame in got if isinstance(frame, Failure)}
    assert set(failures) == {0, 2}
    assert "KeyError" in failures[0]
    assert [frame for frame in got if frame.stream == 1] == [Head(1, 200, ()), Body(1, b"ok"), End(1)]
