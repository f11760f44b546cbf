"""An engine that tells an error inside its stream has failed, whatever its status was, and never looks whole."""

from __future__ import annotations

import json

import pytest

from deepinfer.control_plane.gateway.event_errors import EventErrors
from deepinfer.fleet.config import ServeConfig
from tests.contracts.test_gateway_breakage import EVENT, GOOD, SSE, breaks_after, gateway_over
from tests.hand_made_engine import answers

DONE = b"data: [DONE]\n\n"
ERROR = b'data: {"error": {"message": "EngineCore died", "type": "InternalServerError", "code": 500}}\n\n'
ANTHROPIC_ERROR = (
    b'event: error\ndata: {"type":"error","error":{"type":"internal_error","message":"EngineCore died"}}\n\n'
)
INNOCENT = [
    b'data: {"choices": [{"delta": {"content": "data: {\\"error\\": {}}\\nevent: error\\n"}}]}\n\n',
    b'data: {"text": "an error"}\n\ndata: {"error_rate": 1}\n\n',
    b'data: {"error": null, "text": "none"}\n\n',
    b': {"error"\n\n',
    b'x data: {"error": {}}\n\n',
]


@pytest.mark.parametrize("error", [ERROR, ANTHROPIC_ERROR], ids=["OpenAI", "Anthropic"])
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_what_follows_an_error_is_dropped_however_it_is_cut(error: bytes, size: int) -> None:
    stream = EVENT + INNOCENT[0] + error + DONE
    errors = EventErrors()
    passed = b"".join(errors.passed(stream[at : at + size]) for at in range(0, len(stream), size)) + errors.rest()
    assert passed == EVENT + INNOCENT[0] + error
    assert errors.failure == "EngineCore died"
    assert not errors.nothing_before


@pytest.mark.parametrize("text", INNOCENT)
@pytest.mark.parametrize("size", [1, 5, 1000])
def test_text_that_speaks_of_errors_is_passed_untouched(text: bytes, size: int) -> None:
    errors = EventErrors()
    stream = EVENT + text + DONE
    pieces = [errors.passed(stream[at : at + size]) for at in range(0, len(stream), size)]
    assert b"".join(pieces) + errors.rest() == stream
    assert errors.failure is None


def test_an_unfinished_line_that_looks_like_an_error_is_passed_at_the_end() -> None:
    errors = EventErrors()
    assert errors.passed(b'data: {"err') == b""
    assert errors.rest() == b'data: {"err'
    assert errors.failure is None


async def test_a_stream_with_an_error_counts_as_failed_and_has_no_done() -> None:
    broken = answers(EVENT, ERROR, DONE, content_type=SSE)
    async with gateway_over(broken, GOOD, config=ServeConfig(continue_streams=False)) as (gateway, engines):
        answer = await gateway.ask(stream=True)
        assert (answer.status_code, answer.content) == (200, EVENT + ERROR)
        assert not engines[1].calls
        assert 'status="502"} 1.0' in (await gateway.http.get("/metrics")).text


@pytest.mark.parametrize("pieces", [(ERROR, DONE), (ERROR[:9], ERROR[9:], DONE), (ERROR + DONE,)])
async def test_an_error_that_comes_first_is_tried_on_another_replica(pieces: tuple[bytes, ...]) -> None:
    async with gateway_over(answers(*pieces, content_type=SSE), GOOD) as (gateway, engines):
        assert (await gateway.ask(stream=True)).json() == {"ok": True}
        assert [len(engine.calls) for engine in engines] == [1, 1]


async def test_an_error_that_comes_first_everywhere_is_a_clean_502() -> None:
    async with gateway_over(answers(ERROR, DONE, content_type=SSE)) as (gateway, _):
        answer = await gateway.ask(stream=True)
        assert (answer.status_code, answer.json()["error"]["message"]) == (502, "EngineCore died")


async def test_an_engine_that_fails_after_its_error_event_is_told_once() -> None:
    async with gateway_over(breaks_after(EVENT, ERROR), config=ServeConfig(continue_streams=False)) as (gateway, _):
        assert (await gateway.ask(stream=True)).content == EVENT + ERROR


async def test_a_refusal_inside_a_stream_is_not_asked_of_another_replica() -> None:
    refusal = b'data: {"error": {"message": "too long", "type": "BadRequestError", "code": 400}}\n\n'
    async with gateway_over(answers(EVENT, refusal, DONE, content_type=SSE), GOOD) as (gateway, engines):
        assert (await gateway.ask(stream=True)).content == EVENT + refusal
        assert not engines[1].calls


async def test_a_broken_stream_of_anthropic_s_ends_in_its_own_shape() -> None:
    begun = b'event: message_start\ndata: {"type": "message_start"}\n\n'
    async with gateway_over(breaks_after(begun)) as (gateway, _):
        answer = await gateway.http.post("/v1/messages", json={"model": "chat", "stream": True})
        whole, _, last = answer.content.rpartition(b"event: error\ndata: ")
        assert whole == begun
        told = json.loads(last)
        assert (told["type"], told["error"]["type"]) == ("error", "api_error")
        assert "fell off the bus" in told["error"]["message"]
