"""Clients that are slow, too many, or both: what they cost is bounded, and nobody else notices."""

from __future__ import annotations

import asyncio
import json
import resource
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import httpx
import pytest

from deepinfer.control_plane.gateway import connections, limited_connection
from deepinfer.control_plane.gateway.asgi import Receive, Reply, Scope, Send
from deepinfer.control_plane.gateway.connections import counted_as
from deepinfer.control_plane.gateway.server import Listening, listening
from deepinfer.engine_shim.frames import FRAME_BYTES, WINDOW_BYTES
from deepinfer.fleet.config import ServeConfig
from tests.contracts.test_slow_readers import PIECE, Endless
from tests.gateway_parts import RunningGateway, fleet_of, running_gateway, until
from tests.hand_made_engine import HandMadeEngine, hand_made_engine
from tests.raw_http import Streams, answers_in, connection_to, said
from tests.shim_in_process import shim_over

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10000\r\n"
THOUSAND = 1000
IMPATIENT = ServeConfig(header_seconds=1, body_seconds=1)


@dataclass
class Front:
    gateway: RunningGateway
    engine: HandMadeEngine


@asynccontextmanager
async def front(config: ServeConfig) -> AsyncIterator[Front]:
    async with hand_made_engine() as engine, running_gateway(fleet_of(engine.endpoint), config=config) as gateway:
        await until(lambda: gateway.replicas.candidates("chat"))
        yield Front(gateway, engine)


@pytest.fixture
def many_descriptors() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(4096, hard)), hard))


async def dribble(streams: Streams, byte: bytes) -> None:
    while not streams[0].at_eof():
        streams[1].write(byte)
        await asyncio.sleep(0.3)


@pytest.mark.usefixtures("many_descriptors")
async def test_row_45_a_thousand_half_requests_are_refused_in_time_and_good_ones_do_not_notice() -> None:
    async with front(IMPATIENT) as served, AsyncExitStack() as stack:
        clients = await stack.enter_async_context(asyncio.TaskGroup())
        told = []
        for number in range(THOUSAND):
            streams = await stack.enter_async_context(connection_to(served.gateway.url))
            begun, byte = (HEAD, b"X") if number % 2 else (HEAD + b"\r\n{", b" ")
            streams[1].write(begun)
            if number < THOUSAND / 2:
                clients.create_task(dribble(streams, byte))
            told.append(clients.create_task(said(streams[0])))  # at once: a reset takes what nobody has read yet
        for _ in range(5):
            assert (await served.gateway.ask()).status_code == 200
        async with asyncio.timeout(10):
            answers = await asyncio.gather(*told)
        for answer in answers:
            ((status, body),) = answers_in(answer)
            assert (status, json.loads(body)["error"]["code"]) == (408, "request_too_slow")
        assert len(served.engine.calls) == 5
        metrics = (await served.gateway.http.get("/metrics")).text
        assert 'deepinfer_num_requests_running{model_name="chat",replica="chat-aaaaa-0"} 0.0' in metrics
        await until(lambda: len(asyncio.all_tasks()) < THOUSAND / 4)


async def test_a_body_that_keeps_coming_may_take_longer() -> None:
    async with front(IMPATIENT) as served, connection_to(served.gateway.url) as (reader, writer):
        writer.write(HEAD + b"\r\n")
        for _ in range(8):  # two seconds
            writer.write(b" " * 1250)
            await asyncio.sleep(0.25)
        assert b"400" in await reader.readuntil(b"\r\n")  # it was whole, and no JSON


async def test_who_was_refused_leaves_no_request_behind_and_cannot_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limited_connection, "LAST_SECONDS", 0.5)
    config = ServeConfig(body_seconds=0.2)
    async with front(config) as served, connection_to(served.gateway.url) as (reader, writer):
        writer.write(HEAD + b"\r\n{")
        assert b"408" in await said(reader)
        assert 'status="499"} 1.0' in (await served.gateway.http.get("/metrics")).text
        async with asyncio.timeout(5):
            with pytest.raises(ConnectionError):
                while True:
                    writer.write(b" ")
                    await writer.drain()
                    await asyncio.sleep(0.05)


async def test_a_body_that_nobody_reads_yet_is_not_late() -> None:
    async def takes_its_time(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await asyncio.sleep(0.6)
            while (await receive())["more_body"]:
                pass
            await Reply(200, b"{}").send(send)

    body = b" " * (8 << 20)
    config = ServeConfig(body_seconds=0.2)
    async with listening(takes_its_time, "127.0.0.1", 0, Listening(limits=config)) as port, httpx.AsyncClient() as http:
        assert (await http.post(f"http://127.0.0.1:{port}/", content=body)).status_code == 200


async def test_who_says_nothing_is_hung_up_on_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limited_connection, "KEEP_ALIVE_SECONDS", 0.5)
    async with front(IMPATIENT) as served:
        async with connection_to(served.gateway.url) as (reader, _):
            assert await said(reader) == b""
        async with connection_to(served.gateway.url) as (reader, writer):
            for _ in range(2):
                writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
                await reader.readuntil(b'"ok"}')
            assert await said(reader) == b""


async def test_an_answer_may_take_longer_than_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limited_connection, "KEEP_ALIVE_SECONDS", 0.1)
    app, config = Endless(), ServeConfig(header_seconds=0.2, body_seconds=0.2)
    async with shim_over(app) as shim, running_gateway(fleet_of(shim.status.endpoint), config=config) as gateway:
        await until(lambda: gateway.replicas.candidates("chat"))
        async with gateway.http.stream("POST", "/v1/completions", json={"model": "chat"}) as answer:
            pieces = answer.aiter_raw()
            await asyncio.sleep(0.5)
            for _ in range(100):
                assert await anext(pieces)


@pytest.mark.parametrize(
    ("config", "most"),
    [
        (ServeConfig(max_connections=3), 3),
        (ServeConfig(max_connections_per_client=2), 2),
        (ServeConfig(), 5),
    ],
    ids=["in all", "of one client", "any number from loopback"],
)
async def test_more_connections_than_may_be_are_told_so(
    config: ServeConfig, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "PER_CLIENT", 2)
    async with front(config) as served, AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connection_to(served.gateway.url)) for _ in range(5)]
        for _, writer in clients:
            writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        told = [answers_in(await said(reader)) for reader, _ in clients]
        assert [status for ((status, _),) in told] == [200] * most + [503] * (5 - most)
        for ((_, body),) in told[most:]:
            assert json.loads(body)["error"]["code"] == "too_many_connections"
        async with connection_to(served.gateway.url) as (reader, writer):  # those that left are not counted
            writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            assert (await said(reader)).startswith(b"HTTP/1.1 200")


async def test_a_flood_of_connections_is_not_even_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limited_connection, "BEING_REFUSED", 1)
    async with front(ServeConfig(max_connections=1)) as served, AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connection_to(served.gateway.url)) for _ in range(4)]
        said_to = [await said(reader) for reader, _ in clients[1:]]
        assert [bool(each) for each in said_to] == [True, False, False]


@pytest.mark.parametrize(
    ("address", "counted"),
    [
        ("10.1.2.3", "10.1.2.3"),
        ("127.0.0.1", "loopback"),
        ("::1", "loopback"),
        ("::ffff:127.0.0.1", "loopback"),
        ("::ffff:10.1.2.3", "10.1.2.3"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
    ],
)
def test_a_client_is_its_address_or_its_network(address: str, counted: str) -> None:
    assert counted_as(address) == counted


async def test_row_44_streams_that_are_not_read_wait_in_their_windows_and_hold_up_nobody() -> None:
    app, streams = Endless(), 20
    body = b'{"model": "chat"}'
    async with (
        shim_over(app) as shim,
        running_gateway(fleet_of(shim.status.endpoint)) as gateway,
        AsyncExitStack() as s,
    ):
        await until(lambda: gateway.replicas.candidates("chat"))
        for _ in range(streams):
            client = s.enter_context(socket.socket())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 10)
            client.connect(("127.0.0.1", int(gateway.url.rpartition(":")[2])))
            client.sendall(
                b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
            )
        await until(lambda: app.sent >= streams * WINDOW_BYTES)
        async with gateway.http.stream("POST", "/v1/completions", content=body) as answer:
            pieces = answer.aiter_raw()
            for _ in range(100):
                assert await anext(pieces)
        at_most = streams + 1  # windows, and what the kernel takes
        assert app.sent - 100 * len(PIECE) < at_most * (WINDOW_BYTES + 2 * FRAME_BYTES)
