"""What is judged of an answer before it is passed on, and that nothing that is good is held back or taken for bad."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from deepinfer.control_plane.gateway.first_bytes import HELD_BYTES, check_first_event
from deepinfer.engine_shim.frames import AnswerFrame, Body, End, EngineCall, Head
from tests.contracts.test_gateway_breakage import gateway_over
from tests.hand_made_engine import answers


@pytest.mark.parametrize(
    "first",
    [
        b"data: [DONE]\n\n",
        b"data: words\n\n",
        b": waiting\n\n",
        b"\r\n\r\nevent: ping\r\ndata: {}\r\n\r\n",
        b"\xef\xbb\xbfdata: {}\n\n",
        b"id: 1\n",
        b"ev",
        b'data: {"choices": [',
        b"\n",
    ],
)
def test_these_begin_a_stream_of_events(first: bytes) -> None:
    check_first_event(first)


@pytest.mark.parametrize("pieces", [(b'{"a":', b" [1", b", 2]}"), (b"{}", b" ")], ids=["three pieces", "a space"])
async def test_json_in_pieces_is_passed_on_whole(pieces: tuple[bytes, ...]) -> None:
    async with gateway_over(answers(*pieces)) as (gateway, _):
        assert (await gateway.ask()).content == b"".join(pieces)


async def test_long_json_is_passed_on_as_it_comes() -> None:
    begun, let_go = b'{"data": [' + b" " * HELD_BYTES, asyncio.Event()

    async def slow(stream: int, call: EngineCall) -> AsyncIterator[AnswerFrame]:
        yield Head(stream, 200, ((b"content-type", b"application/json"),))
        yield Body(stream, begun)
        await let_go.wait()
        yield Body(stream, b"]}")
        yield End(stream)

    async with gateway_over(slow) as (gateway, _):
        request = gateway.http.build_request("POST", "/v1/embeddings", json={"model": "chat"})
        answer = await gateway.http.send(request, stream=True)
        pieces = answer.aiter_bytes()
        assert await anext(pieces)
        let_go.set()
        assert b"".join([piece async for piece in pieces]).endswith(b"]}")


@pytest.mark.parametrize("kind", [b"application/x-ndjson", b"text/plain", b"audio/wav"])
async def test_what_is_no_json_is_not_judged(kind: bytes) -> None:
    async with gateway_over(answers(b'{"cut', content_type=kind)) as (gateway, _):
        assert (await gateway.ask()).content == b'{"cut'


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/reset_prefix_cache"), ("GET", "/health"), ("HEAD", "/v1/models")]
)
async def test_outside_the_known_paths_a_bare_200_is_an_answer(method: str, path: str) -> None:
    async with gateway_over(answers()) as (gateway, _):
        answer = await gateway.http.request(method, f"{path}?model=chat")
        assert (answer.status_code, answer.content) == (200, b"")
