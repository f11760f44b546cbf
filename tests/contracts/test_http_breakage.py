"""An engine's HTTP server that breaks off, talks nonsense or closes at a bad moment: what the call's answer becomes."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import pytest

from deepinfer.engine_shim.frames import EngineCall
from deepinfer.engine_shim.http_upstream import HttpUpstream
from deepinfer.engine_shim.http_wire import MOST_WITHOUT_BODY
from deepinfer.fleet.errors import EngineFailed
from tests.gateway_parts import until
from tests.http_parts import Conversation, Script, scripted_server

GET = EngineCall("GET", "/")
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


def says(*pieces: bytes, then_waits: bool = False) -> Script:
    """One answer, and the connection's end."""

    async def script(conversation: Conversation) -> None:
        await conversation.request()
        await conversation.say(*pieces)
        if then_waits:
            await conversation.reader.read()

    return script


async def answered(*pieces: bytes, call: EngineCall = GET) -> bytes:
    async with scripted_server(says(*pieces)) as server:
        return await (await server.upstream.call(call)).read()


async def test_an_answer_without_a_length_ends_with_its_connection() -> None:
    assert await answered(b"HTTP/1.1 200 OK\r\n\r\nab", b"cd") == b"abcd"
    assert await answered(b"HTTP/1.0 200 OK\r\n\r\n") == b""


async def test_interim_answers_and_trailers_are_passed_over() -> None:
    interim = b"HTTP/1.1 100 Continue\r\nx-early: 1\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\n"
    async with scripted_server(says(interim, CHUNKED + b"2\r\nok\r\n0\r\nx-late: 1\r\n\r\n")) as server:
        answer = await server.upstream.call(GET)
        assert (answer.status, answer.headers, await answer.read()) == (200, (), b"ok")


async def test_headers_for_this_hop_do_not_travel_on() -> None:
    head = b"HTTP/1.1 200 OK\r\nConnection: X-Hop, keep-alive\r\nKeep-Alive: timeout=5\r\nX-Hop: 1\r\nX-Far: 2\r\n"
    async with scripted_server(says(head + b"content-length: 0\r\n\r\n")) as server:
        answer = await server.upstream.call(GET)
        assert answer.headers == ((b"x-far", b"2"), (b"content-length", b"0"))


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf",
        CHUNKED + b"4\r\nhalf\r\n",
        CHUNKED + b"9\r\nhalf",
    ],
    ids=["shorter than told", "no last chunk", "in a chunk"],
)
async def test_a_body_that_breaks_off_is_not_whole(said: bytes) -> None:
    async with scripted_server(says(said)) as server:
        answer = await server.upstream.call(GET)
        assert await anext(answer) == b"half"
        with pytest.raises(
            EngineFailed, match=r"engine at the test failed: it closed .* in the middle of its answer\."
        ):
            await anext(answer)


async def test_a_reset_in_the_middle_is_told_with_the_kernel_s_word() -> None:
    was_read = asyncio.Event()

    async def script(conversation: Conversation) -> None:
        await conversation.request()
        await conversation.say(CHUNKED + b"4\r\nhalf\r\n")
        await was_read.wait()
        conversation.reset()

    async with scripted_server(script) as server:
        answer = await server.upstream.call(GET)
        assert await anext(answer) == b"half"
        was_read.set()
        with pytest.raises(EngineFailed, match=r"in the middle of its answer .*reset"):
            await anext(answer)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", "no answer in HTTP"),
        (b"HTTP/1.1 two hundred\r\n\r\n", "no answer in HTTP"),
        (b"HTTP/1.1 200 OK\r\nbroken header\r\n\r\n", "no answer in HTTP"),
        (b"HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n", "another protocol"),
        (b"HTTP/1.1 200 OK\r\nx: " + b"x" * (8 * MOST_WITHOUT_BODY), "no body among them"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * MOST_WITHOUT_BODY, "no body among them"),
        (b"", "it closed a connection|it closed the connection before it answered"),
    ],
    ids=["SSH", "its status", "its headers", "an upgrade", "a huge head", "interim for ever", "nothing"],
)
async def test_what_is_no_answer_is_said_to_be_none(said: bytes, why: str) -> None:
    async with scripted_server(says(said)) as server:
        with pytest.raises(EngineFailed, match=f"^The engine at the test failed: .*({why})"):
            await server.upstream.call(GET)
        assert len(server.callers) == 1  # it is not asked a second time


async def test_nonsense_after_a_good_beginning_ends_the_answer_there() -> None:
    async with scripted_server(says(CHUNKED + b"2\r\nok\r\nzz\r\n", then_waits=True)) as server:
        answer = await server.upstream.call(GET)
        assert await anext(answer) == b"ok"
        with pytest.raises(EngineFailed, match="no answer in HTTP"):
            await anext(answer)


@pytest.mark.parametrize("end", [lambda _: None, Conversation.reset], ids=["closed", "reset"])
async def test_a_call_that_met_the_close_of_an_idle_connection_is_sent_again(
    end: Callable[[Conversation], None],
) -> None:
    async def script(conversation: Conversation) -> None:
        await conversation.request()
        await conversation.say(OK)
        await conversation.request()
        while conversation.number > 0:  # the first ends here, with no word for the call that was under way
            await conversation.say(OK)
            await conversation.request()
        end(conversation)

    async with scripted_server(script) as server:
        for _ in range(3):
            assert await (await server.upstream.call(GET)).read() == b"ok"
        assert len(server.callers) == 2


async def test_a_call_whose_answer_had_begun_is_not_sent_again() -> None:
    async def script(conversation: Conversation) -> None:
        await conversation.request()
        await conversation.say(OK)
        await conversation.request()
        await conversation.say(b"HTTP/1.1 2")

    async with scripted_server(script) as server:
        await (await server.upstream.call(GET)).read()
        with pytest.raises(EngineFailed, match="before it answered"):
            await server.upstream.call(GET)
        assert len(server.callers) == 1


@pytest.mark.parametrize(
    "said",
    [OK + OK, OK + b"!", b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok"],
    ids=["two answers", "more than an answer", "a close that was told"],
)
async def test_a_connection_that_may_hold_anything_else_is_not_used_again(said: bytes) -> None:
    async with scripted_server(says(said, then_waits=True)) as server:
        for _ in range(2):
            assert await (await server.upstream.call(GET)).read() == b"ok"
        assert len(server.callers) == 2


async def test_what_comes_while_nothing_was_asked_ends_the_connection() -> None:
    said = asyncio.Event()

    async def script(conversation: Conversation) -> None:
        await conversation.request()
        await conversation.say(OK)
        await said.wait()
        await conversation.say(OK)
        await conversation.reader.read()

    async with scripted_server(script) as server:
        await (await server.upstream.call(GET)).read()
        said.set()
        await until(lambda: not server.upstream._all)
        assert await (await server.upstream.call(GET)).read() == b"ok"
        assert len(server.callers) == 2


async def test_an_answer_before_the_request_was_read_costs_the_connection() -> None:
    async def script(conversation: Conversation) -> None:
        await conversation.reader.readuntil(b"\r\n\r\n")
        conversation.reader._transport.pause_reading()  # type: ignore[attr-defined]
        await conversation.say(b"HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\n\r\n")
        await asyncio.Event().wait()

    async with scripted_server(script) as server:
        for _ in range(2):
            answer = await server.upstream.call(EngineCall("POST", "/", body=b"x" * (64 << 20)))
            assert (answer.status, await answer.read()) == (413, b"")
        assert len(server.callers) == 2


async def test_a_server_that_is_not_there_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        endpoint = f"127.0.0.1:{listener.getsockname()[1]}"
    with pytest.raises(EngineFailed, match=f"The engine at the test takes no calls at {endpoint}: "):
        await HttpUpstream(endpoint, "the test").call(GET)


async def test_small_writes_leave_at_once() -> None:
    async with scripted_server(says(OK, then_waits=True)) as server:
        await (await server.upstream.call(GET)).read()
        (connection,) = server.upstream._all
        kernel = connection._transport.get_extra_info("socket")
        assert kernel.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert kernel.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
