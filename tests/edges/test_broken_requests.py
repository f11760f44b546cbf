"""Requests that are broken, or mean harm: each gets a 4xx in OpenAI's shape or a closed connection, costs the engine
nothing, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from deepinfer.fleet.config import ServeConfig
from tests.gateway_parts import RunningGateway, fleet_of, running_gateway, until
from tests.raw_http import answers_in, connection_to, said
from tests.sim_engine import SimProcess, sim_process

CHAT = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
CHUNKED = CHAT + b"Transfer-Encoding: chunked\r\n"
GOOD = b'{"model":"chat","max_tokens":2,"messages":[{"role":"user","content":"hi"}]}'
LENGTH = b"Content-Length: %d\r\n" % len(GOOD)
CONFIG = ServeConfig(max_body_bytes=1 << 20)

pytestmark = pytest.mark.asyncio(loop_scope="module")


@dataclass
class Front:
    gateway: RunningGateway
    sim: SimProcess

    async def tell(self, *pieces: bytes) -> list[tuple[int, bytes]]:
        """The answers on a connection, which must end."""
        async with connection_to(self.gateway.url) as (reader, writer):
            for piece in pieces:
                writer.write(piece)
                await asyncio.sleep(0)
            async with asyncio.timeout(10):
                return answers_in(await said(reader))

    async def is_at_rest(self) -> None:
        await until(lambda: self.gateway.replicas.candidates("chat")[0].in_flight == 0)
        assert (
            'deepinfer_num_requests_running{model_name="chat",replica="chat-aaaaa-0"} 1'
            not in (await self.gateway.http.get("/metrics")).text
        )
        assert (await self.sim.state(0)).load.running == 0


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def front(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Front]:
    folder: Path = tmp_path_factory.mktemp("sim")
    async with sim_process(folder) as sim, running_gateway(fleet_of(sim.endpoint), config=CONFIG) as gateway:
        await until(lambda: gateway.replicas.candidates("chat"))
        front = Front(gateway, sim)
        assert [status for status, _ in await front.tell(post(GOOD))] == [200]
        yield front


def post(body: bytes, *headers: bytes) -> bytes:
    lines = (b"Content-Length: %d" % len(body), b"Connection: close", *headers)
    return CHAT + b"\r\n".join(lines) + b"\r\n\r\n" + body


def chat(said: str) -> bytes:
    """A good request with something more."""
    return GOOD[:-1] + b"," + said.encode() + b"}"


def user(*parts: object) -> bytes:
    return json.dumps({"model": "chat", "messages": [{"role": "user", "content": parts}]}).encode()


HEADS = {
    "both length and chunked": (CHUNKED + LENGTH + b"\r\n0\r\n\r\n", 400),
    "both chunked and length": (CHAT + LENGTH + b"Transfer-Encoding: chunked\r\n\r\n" + GOOD, 400),
    "xchunked": (CHAT + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 400),
    "chunked, identity": (CHAT + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", 400),
    "identity": (CHAT + b"Transfer-Encoding: identity\r\n\r\n0\r\n\r\n", 400),
    "gzip, chunked": (CHAT + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400),
    "chunked twice": (CHUNKED + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "chunked after a tab": (CHAT + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n", 400),
    "space before the colon": (CHAT + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n", 400),
    "chunked in HTTP/1.0": (CHUNKED.replace(b"1.1", b"1.0") + b"\r\n0\r\n\r\n", 400),
    "chunked asking to upgrade": (CHUNKED + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n0\r\n\r\n", 400),
    "two lengths": (CHAT + LENGTH + b"Content-Length: 1\r\n\r\n" + GOOD, 400),
    "the same length twice": (CHAT + LENGTH + LENGTH + b"\r\n" + GOOD, 400),
    "a list of lengths": (CHAT + b"Content-Length: 3, 3\r\n\r\nabc", 400),
    "a signed length": (CHAT + b"Content-Length: +3\r\n\r\nabc", 400),
    "a negative length": (CHAT + b"Content-Length: -3\r\n\r\nabc", 400),
    "a hexadecimal length": (CHAT + b"Content-Length: 0x3\r\n\r\nabc", 400),
    "a length beyond 64 bits": (CHAT + b"Content-Length: 99999999999999999999\r\n\r\nabc", 400),
    "an empty length": (CHAT + b"Content-Length:\r\n\r\nabc", 400),
    "a folded line": (CHAT + b"X: a\r\n b\r\n" + LENGTH + b"\r\n" + GOOD, 400),
    "bare line feeds": (CHAT.replace(b"\r\n", b"\n") + b"\n", 400),
    "a bare carriage return": (CHAT + b"X: a\rContent-Length: 3\r\n\r\nabc", 400),
    "NUL in a header": (CHAT + b"X: a\0b\r\n\r\n", 400),
    "NUL in a name": (CHAT + b"X\0: b\r\n\r\n", 400),
    "a control character": (CHAT + b"X: \x01\r\n\r\n", 400),
    "a line without a colon": (CHAT + b"hello\r\n\r\n", 400),
    "no host": (b"GET /health HTTP/1.1\r\n\r\n", 400),
    "two hosts": (b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: b\r\n\r\n", 400),
    "an empty host": (b"GET /health HTTP/1.1\r\nHost:\r\n\r\n", 400),
    "a host with a path": (b"GET /health HTTP/1.1\r\nHost: a/v1/models?\r\n\r\n", 400),
    "a host with a user": (b"GET /health HTTP/1.1\r\nHost: a@b\r\n\r\n", 400),
    "HTTP/0.9": (b"GET /health\r\n\r\n", 400),
    "HTTP/2.0": (b"GET /health HTTP/2.0\r\nHost: localhost\r\n\r\n", 400),
    "HTTP/2's preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    "an unknown method": (b"BREW /pot HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    "a method that is a tunnel": (b"CONNECT etcd:2379 HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    "a path with a space": (b"GET /a b HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    "a path that is not ASCII": (b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    "no path": (b"GET health HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    "another method": (b"PROPFIND /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", 405),
    "a large header": (CHAT + b"X: " + b"a" * 40_000 + b"\r\n\r\n", 431),
    "a large header in one piece with a body": (CHAT + b"X: " + b"a" * 33_000 + b"\r\n" + LENGTH + b"\r\n" + GOOD, 431),
    "a large path": (b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 431),
    "headers without end": (CHAT + b"X: a\r\n" * 20_000, 431),
    "many headers": (CHAT + b"X: a\r\n" * 101 + b"\r\n", 431),
    "line ends for ever": (b"\r\n" * 40_000, 431),
    "a compressed body": (CHAT + LENGTH + b"Content-Encoding: gzip\r\n\r\n" + GOOD, 415),
    "a large body": (CHAT + b"Content-Length: 1048577\r\n\r\n", 413),
    "a large chunk": (CHUNKED + b"\r\n200000\r\n" + b" " * 0x200000, 413),
    "chunks without end": (CHUNKED + b"\r\n" + (b"10000\r\n" + b" " * 0x10000 + b"\r\n") * 17, 413),
    "a chunk beyond 64 bits": (CHUNKED + b"\r\nfffffffffffffffff\r\n", 400),
    "a negative chunk": (CHUNKED + b"\r\n-1\r\n", 400),
    "a chunk's size with 0x": (CHUNKED + b"\r\n0x1\r\n", 400),
    "a chunk longer than it says": (CHUNKED + b"\r\n1\r\nabc\r\n0\r\n\r\n", 400),
    "a chunk's size without a carriage return": (CHUNKED + b"\r\n1\na\r\n0\r\n\r\n", 400),
    "a chunk's extension without end": (CHUNKED + b"\r\n1;" + b"a" * (2 << 20), 400),
    "trailers without end": (CHUNKED + b"\r\n0\r\n" + b"X: a\r\n" * 400_000, 400),
    "a length in a trailer": (CHUNKED + b"\r\n0\r\nContent-Length: 3\r\n\r\n", 400),
}


@pytest.mark.parametrize("name", HEADS)
async def test_what_is_not_http_is_refused_and_nothing_after_it_is_read(front: Front, name: str) -> None:
    sent, status = HEADS[name]
    smuggled = b"" if status == 431 or "without end" in name else b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    answers = await front.tell(sent, smuggled)
    assert [code for code, _ in answers] == [status]
    assert_openai_s(answers[0][1])
    await front.is_at_rest()


BODIES = {
    "nothing": b"",
    "words": b"hello",
    "half": GOOD[:20],
    "two": GOOD + GOOD,
    "a byte order mark": b"\xef\xbb\xbf" + GOOD,
    "UTF-16": GOOD.decode().encode("utf-16"),
    "no UTF-8": chat('"user":"@"').replace(b"@", b"\xff"),
    "UTF-8 that is too long": chat('"user":"@"').replace(b"@", b"\xc0\xaf"),
    "half a surrogate pair": chat(r'"user":"\ud800"'),
    "a control character": chat('"user":"\n"'),
    "NaN": chat('"temperature":NaN'),
    "Infinity": chat('"temperature":-Infinity'),
    "1e999": chat('"anything":1e999'),
    "5,000 digits": chat('"anything":' + "9" * 5_000),
    "400 digits": chat('"seed":1' + "0" * 400),
    "a list": b"[" + GOOD + b"]",
    "65 levels where nobody reads": chat('"anything":' + "[" * 64 + "]" * 64),
    "1,000 levels": chat('"anything":' + '{"a":' * 1000 + "1" + "}" * 1000),
    "100,000 levels": chat('"anything":' + "[" * 100_000 + "]" * 100_000),
    "100,000 levels without end": chat('"anything":' + "[" * 100_000),
    "no model": b"{}",
    "model is null": b'{"model":null}',
    "model is a number": b'{"model":1}',
    "model is a list": b'{"model":["chat"]}',
    "model is unknown": b'{"model":"../../etc/passwd"}',
    "model is another in the end": GOOD[:-1] + b',"model":"nobody"}',
    "model is another, escaped": GOOD[:-1] + rb',"mode\u006c":"nobody"}',
    "n is a billion": chat('"n":1000000000'),
    "n is no integer": chat('"n":"2"'),
    "best_of is a billion": chat('"best_of":1000000000'),
    "max_tokens is a trillion": chat('"max_tokens":1000000000000'),
    "max_tokens is negative": chat('"max_tokens":-1'),
    "messages is a number": b'{"model":"chat","messages":7}',
    "messages is null": b'{"model":"chat","messages":null}',
    "content is a number": user()[:-4] + b'{"role":"user","content":7}]}',
    "stream is a word": chat('"stream":"yes"'),
    "temperature is a list": chat('"temperature":[]'),
    "stop is an object": chat('"stop":{}'),
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
async def test_a_body_that_cannot_be_served_is_a_4xx(front: Front, body: bytes) -> None:
    ((status, told),) = await front.tell(post(body))
    assert 400 <= status < 500, told
    assert_openai_s(told)
    await front.is_at_rest()


async def test_the_engine_reads_of_two_models_the_one_that_was_routed_by(front: Front) -> None:
    ((status, _),) = await front.tell(post(b'{"model":"nobody",' + GOOD[1:]))
    assert status == 200


@pytest.mark.parametrize(
    "sent",
    [CHAT, CHAT + LENGTH, CHAT + LENGTH + b"\r\n" + GOOD[:-5], CHUNKED + b"\r\n4d\r\n" + GOOD[:-5]],
    ids=["in its headers", "before its headers' end", "in its body", "in a chunk"],
)
async def test_a_client_that_leaves_in_the_midst_leaves_nothing(front: Front, sent: bytes) -> None:
    async with connection_to(front.gateway.url) as (reader, writer):
        writer.write(sent)
        writer.write_eof()
        async with asyncio.timeout(10):
            assert await reader.read() == b""
    await front.is_at_rest()


async def test_what_is_sent_before_the_answer_is_not_answered(front: Front) -> None:
    answers = await front.tell(CHAT + LENGTH + b"\r\n" + GOOD + b"\0garbage")
    assert [status for status, _ in answers] == [200]
    answers = await front.tell(CHAT + LENGTH + b"\r\n" + GOOD + CHAT + LENGTH + b"\r\n" + GOOD)
    assert [status for status, _ in answers] == [200]
    await front.is_at_rest()


async def test_a_body_that_comes_with_a_wish_to_upgrade_is_read_all_the_same(front: Front) -> None:
    """Java's HTTP client sends it with its first request on every connection."""
    head = CHAT + LENGTH + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMA\r\n\r\n"
    whole, halves = await front.tell(head + GOOD + b"\0"), await front.tell(head + GOOD[:9], GOOD[9:] + b"\0")
    assert [status for status, _ in whole + halves] == [200, 200]


async def test_trailers_come_too_late_to_be_headers(front: Front) -> None:
    head = b"POST /v1/models?model=chat HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with connection_to(front.gateway.url) as (reader, writer):
        writer.write(head + b"0\r\nX-Request-Id: too-late\r\n\r\n\0garbage")
        answer = await said(reader)
    assert b"x-request-id" in answer and b"too-late" not in answer


async def test_an_answer_without_a_body_being_read_ends_the_connection(front: Front) -> None:
    ((status, _),) = await front.tell(CHAT.replace(b"POST", b"GET") + b"Content-Length: 1000000\r\n\r\n" + b" " * 9_000)
    assert status == 405


def assert_openai_s(told: bytes) -> None:
    error = json.loads(told)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"] and error["type"]
