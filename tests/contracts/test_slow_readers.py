"""Who reads slowly costs a bounded amount of memory, on either end, and nobody else's time."""

from __future__ import annotations

import asyncio
import socket

import pytest

from deepinfer.engine_shim.answer import Answer
from deepinfer.engine_shim.call_wire import hello
from deepinfer.engine_shim.frames import (
    FRAME_BYTES,
    TOLERATED_BYTES,
    WINDOW_BYTES,
    Body,
    Credit,
    End,
    EngineCall,
    Failure,
    Head,
    Open,
)
from deepinfer.engine_shim.served_engine import Receive, Scope, Send
from deepinfer.fleet.config import ServeConfig
from deepinfer.fleet.errors import EngineFailed
from tests.call_parts import KEY, bare_caller, caller_of, served
from tests.gateway_parts import fleet_of, running_gateway, until
from tests.shim_in_process import shim_over

PIECE = b":" * (256 << 10)
PIECES = 40


class Generous:
    """An application with ten windows to give in pieces, or all at once; `given` counts pieces that left its hands."""

    def __init__(self) -> None:
        self.given = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if scope["path"] == "/at-once":
            await send({"type": "http.response.body", "body": PIECE * PIECES})
        elif scope["path"] == "/small":
            await send({"type": "http.response.body", "body": b"small"})
        else:
            for _ in range(PIECES):
                await send({"type": "http.response.body", "body": PIECE, "more_body": True})
                self.given += 1
            await send({"type": "http.response.body", "body": b""})


async def test_an_application_waits_when_its_window_is_used_up_and_goes_on_with_credit() -> None:
    app = Generous()
    async with served(app) as serving, bare_caller(serving.endpoint) as caller:
        caller.send(hello(KEY), Open(1, EngineCall("GET", "/"), whole=True))
        first = await caller.frames(1 + WINDOW_BYTES // FRAME_BYTES)
        assert isinstance(first[0], Head)
        assert sum(len(frame.data) for frame in first if isinstance(frame, Body)) == WINDOW_BYTES
        caller.send(Open(2, EngineCall("GET", "/small"), whole=True))
        assert await caller.frames(3) == [Head(2, 200, ()), Body(2, b"small"), End(2)]  # and none of the first
        assert app.given == WINDOW_BYTES // len(PIECE)
        caller.send(Credit(1, FRAME_BYTES))
        assert await caller.frame() == Body(1, PIECE)


@pytest.mark.parametrize("path", ["/", "/at-once"])
async def test_an_answer_that_is_read_may_be_of_any_length(path: str) -> None:
    async with served(Generous()) as serving, caller_of(serving) as caller:
        body = await caller.ask(EngineCall("GET", path)).read()
        assert len(body) == PIECES * len(PIECE)


@pytest.mark.parametrize("path", ["/", "/at-once"])
async def test_a_large_body_travels_in_pieces_and_a_poured_one_is_granted_as_it_drains(path: str) -> None:
    came: list[int] = []
    not_drained = 0
    most = 0

    def write(piece: bytes) -> None:
        nonlocal not_drained, most
        came.append(len(piece))
        not_drained += len(piece)
        most = max(most, not_drained)

    async def drained() -> None:
        nonlocal not_drained
        await asyncio.sleep(0.001)  # a client that takes its time
        not_drained = 0

    async with served(Generous()) as serving, caller_of(serving) as caller:
        await caller.ask(EngineCall("GET", path)).pour(write, drained)
    assert sum(came) == PIECES * len(PIECE)
    assert max(came) == FRAME_BYTES
    assert most <= WINDOW_BYTES + FRAME_BYTES


async def test_one_who_does_not_read_holds_up_nobody_else() -> None:
    async with served(Generous()) as serving, caller_of(serving) as caller:
        unread = caller.ask(EngineCall("GET", "/"))
        await unread.until_head()
        for _ in range(3):
            assert len(await caller.ask(EngineCall("GET", "/")).read()) == PIECES * len(PIECE)
        assert len(await unread.read()) == PIECES * len(PIECE)


async def test_an_engine_that_sends_more_than_was_granted_is_not_listened_to() -> None:
    cancelled: list[bool] = []
    answer = Answer(lambda: cancelled.append(True), lambda count: None)
    answer.take(Head(1, 200, ()))
    for _ in range(10):
        answer.take(Body(1, PIECE))
    assert cancelled == [True]
    assert len(await anext(answer)) <= TOLERATED_BYTES + 2 * FRAME_BYTES
    with pytest.raises(EngineFailed, match="were granted"):
        await anext(answer)


async def test_a_small_answer_costs_no_credit() -> None:
    granted: list[int] = []
    answer = Answer(lambda: None, granted.append)
    for _ in range(1000):
        answer.take(Body(1, b"0123456789"))
        assert await anext(answer) == b"0123456789"
    assert not granted
    for _ in range(4):
        answer.take(Body(1, PIECE))
        await anext(answer)
    assert sum(granted) == 4 * len(PIECE) + 10_000


async def test_a_failure_comes_after_what_came_before_it() -> None:
    answer = Answer(lambda: None, lambda count: None)
    answer.take(Body(1, b"half"))
    answer.take(Failure(1, "out of memory"))
    assert await anext(answer) == b"half"
    with pytest.raises(EngineFailed, match="out of memory"):
        await anext(answer)


class Endless:
    """Streams as long as its reader takes it; `stopped` when that ended."""

    def __init__(self) -> None:
        self.sent = 0
        self.stopped = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        try:
            while True:
                await send({"type": "http.response.body", "body": PIECE, "more_body": True})
                self.sent += len(PIECE)
        finally:
            self.stopped.set()


async def test_a_client_that_takes_nothing_is_cut_off_and_its_engine_told() -> None:
    app, config = Endless(), ServeConfig(write_seconds=0.5)
    async with shim_over(app) as shim, running_gateway(fleet_of(shim.status.endpoint), config=config) as gateway:
        await until(lambda: gateway.replicas.candidates("chat"))
        address = ("127.0.0.1", int(gateway.url.rpartition(":")[2]))
        with socket.create_connection(address) as client:  # which reads nothing, ever
            body = b'{"model": "chat"}'
            client.sendall(
                b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
            )
            async with asyncio.timeout(10):
                await app.stopped.wait()
        assert app.sent < 16 << 20  # what the kernel took, and two windows
        await until(lambda: gateway.replicas.candidates("chat")[0].in_flight == 0)
        assert 'status="499"} 1.0' in (await gateway.http.get("/metrics")).text
