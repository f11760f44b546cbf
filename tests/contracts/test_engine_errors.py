"""Whatever an engine says with a status of 400 or more, its client reads in its own API's shape; the status stays."""

from __future__ import annotations

import gzip
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import httpx
import openai
import pytest

from deepinfer.control_plane.gateway.engine_errors import QUOTED_CHARACTERS, READ_BYTES
from deepinfer.engine_shim.frames import AnswerFrame, Body, End, EngineCall, Failure, Head, Headers
from tests.contracts.test_gateway_breakage import GOOD, gateway_over
from tests.hand_made_engine import Answering

IN_SHAPE = [
    b'{"error": {"message": "no", "type": "BadRequestError", "param": null, "code": 400}}',
    b' {"error":{"message":"no such endpoint","code":404}, "more": 1}\n',
]
NOT_FOUND = b'{"detail":"Not Found"}'
REFUSED, FAILED = "invalid_request_error", "server_error"
PAGE = b"<!DOCTYPE html><html><body>Bad gateway</body></html>"
WRONG_FIELD = b'{"detail":[{"type":"missing","loc":["body","input","0"],"msg":"Field required"},{"msg":"b"}]}'
OLD_VLLM = b'{"object":"error","message":"too long","type":"BadRequestError","param":"prompt","code":400}'


def refuses(status: int, *pieces: bytes, headers: Headers = (), breaks: bool = False) -> Answering:
    async def answering(stream: int, call: EngineCall) -> AsyncIterator[AnswerFrame]:
        yield Head(stream, status, headers)
        for piece in pieces:
            yield Body(stream, piece)
        yield Failure(stream, "gone") if breaks else End(stream)

    return answering


async def asked(answering: Answering, path: str = "/v1/chat/completions") -> httpx.Response:
    async with gateway_over(answering) as (gateway, _):
        return await gateway.http.post(path, json={"model": "chat"})


@pytest.mark.parametrize("body", IN_SHAPE)
async def test_what_is_in_shape_comes_back_untouched(body: bytes) -> None:
    answer = await asked(refuses(400, body[:9], body[9:], headers=((b"content-type", b"application/json"),)))
    assert (answer.status_code, answer.content, answer.headers["content-type"]) == (400, body, "application/json")


@pytest.mark.parametrize(
    ("status", "body", "message", "type_", "param", "code"),
    [
        (404, NOT_FOUND, "engine of 'chat' does not serve", REFUSED, None, "unknown_url"),
        (404, PAGE, "engine of 'chat' does not serve", REFUSED, None, "unknown_url"),
        (405, b'{"detail":"Method Not Allowed"}', "does not take POST", REFUSED, None, "method_not_allowed"),
        (422, WRONG_FIELD, "'input.0': Field required.", REFUSED, "input.0", None),
        (422, b'{"detail":[]}', '{"detail":[]}', REFUSED, None, None),
        (400, OLD_VLLM, "too long", "BadRequestError", "prompt", None),
        (400, b'{"error":"a text"}', "a text", REFUSED, None, None),
        (400, b'{"error":{"code":"x"}}', '{"error":{"code":"x"}}', REFUSED, None, None),
        (401, b'"Unauthorized"', "Unauthorized", "authentication_error", None, None),
        (429, b'{"detail":"slow down"}', "slow down", "rate_limit_error", None, None),
        (500, b"Internal Server Error", "status 500 and did not say why", FAILED, None, "engine_failed"),
        (500, b"", "status 500 and did not say why", FAILED, None, "engine_failed"),
        (502, PAGE, "status 502 and did not say why", FAILED, None, "engine_failed"),
        (503, b'{"message":"busy"}', "busy", "service_unavailable", None, "engine_failed"),
        (500, b"[1, 2", "[1, 2", FAILED, None, "engine_failed"),
        (500, b"\xff\xfe", "\ufffd\ufffd", FAILED, None, "engine_failed"),
        (500, b"[" * 5000, "[[[[", FAILED, None, "engine_failed"),
    ],
)  # fmt: skip
async def test_anything_else_comes_back_in_openai_s_shape(
    status: int, body: bytes, message: str, type_: str, param: str | None, code: str | None
) -> None:
    answer = await asked(refuses(status, body, headers=((b"content-type", b"text/html"),)))
    error = answer.json()["error"]
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/json")
    assert message in error["message"]
    assert (error["type"], error["param"], error["code"]) == (type_, param, code)


async def test_headers_stay_and_the_length_is_the_new_body_s() -> None:
    headers = ((b"retry-after", b"7"), (b"allow", b"GET"), (b"content-length", b"4"), (b"x-mine", b"1"))
    answer = await asked(refuses(429, b"busy", headers=headers))
    assert {"retry-after": "7", "allow": "GET", "x-mine": "1"}.items() <= answer.headers.items()
    assert int(answer.headers["content-length"]) == len(answer.content)
    assert len(answer.headers["x-request-id"]) == 32


async def test_no_more_is_read_than_a_bound_and_no_more_is_quoted_than_a_person_reads() -> None:
    piece = b"x" * 60_000
    long = await asked(refuses(500, *[piece] * 40))
    assert len(long.json()["error"]["message"]) == QUOTED_CHARACTERS + 1
    shaped = b'{"error": {"message": "%b"}}' % (b"y" * READ_BYTES)
    assert (await asked(refuses(400, shaped))).json()["error"]["message"].startswith('{"error": {"message": "yyy')


async def test_an_error_that_breaks_off_is_told_as_far_as_it_came() -> None:
    answer = await asked(refuses(400, b"the prompt is", breaks=True))
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, "the prompt is")


async def test_a_compressed_error_goes_on_as_it_is() -> None:
    headers = ((b"content-type", b"application/json"), (b"content-encoding", b"gzip"))
    answer = await asked(refuses(400, gzip.compress(b'{"detail":"no"}'), headers=headers))
    assert answer.json() == {"detail": "no"}


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/images/generations", "/v1/audio/speech", "/rerank"])
async def test_what_an_engine_does_not_serve_says_what_does(path: str) -> None:
    message = (await asked(refuses(404, NOT_FOUND), path)).json()["error"]["message"]
    assert f"does not serve {path} as it is deployed. It takes a model " in message


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (404, NOT_FOUND, "not_found_error"),
        (400, IN_SHAPE[0], "invalid_request_error"),
        (429, b"slow down", "rate_limit_error"),
        (503, b"", "overloaded_error"),
        (500, PAGE, "api_error"),
        (400, b'{"type":"error","error":{"type":"BadRequestError","message":"no"}}', "BadRequestError"),
    ],
)
async def test_anthropic_s_paths_have_anthropic_s_shape(status: int, body: bytes, expected: str) -> None:
    answer = await asked(refuses(status, body), "/v1/messages")
    told = answer.json()
    assert answer.status_code == status
    assert (told["type"], told["error"]["type"]) == ("error", expected)
    assert told["error"]["message"]


async def test_the_gateway_s_own_errors_have_it_too() -> None:
    async with gateway_over(GOOD) as (gateway, _):
        unknown = await gateway.http.post("/v1/messages", json={"model": "claude"})
        broken = await gateway.http.post("/v1/messages/count_tokens", content=b"{")
    assert (unknown.status_code, unknown.json()["error"]["type"]) == (404, "not_found_error")
    assert (broken.status_code, broken.json()["type"]) == (400, "error")


async def test_clients_raise_their_own_errors_with_the_engine_s_words() -> None:
    async with gateway_over(refuses(404, NOT_FOUND)) as (gateway, _):
        client: Any = openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0)
        with pytest.raises(openai.NotFoundError, match="does not serve /v1/embeddings"):
            await client.embeddings.create(model="chat", input="hi")
        with pytest.raises(openai.NotFoundError, match="does not serve /v1/images/edits"):
            await client.images.edit(model="chat", prompt="a cat", image=b"PNG")
        with pytest.raises(openai.NotFoundError, match="does not serve /v1/audio/transcriptions"):
            await client.audio.transcriptions.create(model="chat", file=b"RIFF" * 1000)
        claude: Any = anthropic.AsyncAnthropic(base_url=gateway.url, api_key="none", max_retries=0)
        with pytest.raises(anthropic.NotFoundError, match="does not serve /v1/messages") as raised:
            await claude.messages.create(model="chat", max_tokens=1, messages=[{"role": "user", "content": "hi"}])
        assert raised.value.type == "not_found_error"
        await client.close()
        await claude.close()


@pytest.mark.parametrize(("status", "came"), [(500, 200), (503, 200), (400, 400), (404, 404), (429, 429)])
async def test_a_failure_is_tried_on_another_replica_and_a_refusal_is_not(status: int, came: int) -> None:
    async with gateway_over(refuses(status, b"no"), GOOD) as (gateway, engines):
        assert (await gateway.ask()).status_code == came
        assert len(engines[1].calls) == (came == 200)
