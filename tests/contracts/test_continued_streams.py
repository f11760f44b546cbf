"""An engine is killed in mid-stream: another replica goes on, and nobody can tell from what the client got."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from deepinfer.engine_shim.frames import AnswerFrame, EngineCall
from tests.contracts.test_gateway_breakage import GOOD, SSE, breaks_after
from tests.contracts.test_gateway_breakage import gateway_over as gateway_over_hand_made
from tests.gateway_parts import RunningGateway, fleet_of, running_gateway, until
from tests.hand_made_engine import Answering, answers
from tests.sim_engine import SimProcess, sim_processes

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
ASKED: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [{"role": "user", "content": "Tell me a tale."}]},
    COMPLETIONS: {"prompt": "Tell me a tale."},
}
USAGE = {"stream_options": {"include_usage": True}}


@asynccontextmanager
async def gateway_over(folder: Path, replicas: int) -> AsyncIterator[tuple[RunningGateway, list[SimProcess]]]:
    async with AsyncExitStack() as stack:
        sims = await stack.enter_async_context(sim_processes(folder, replicas, seconds_per_output_token=0.005))
        gateway = await stack.enter_async_context(running_gateway(fleet_of(*(sim.endpoint for sim in sims))))
        await until(lambda: len(gateway.replicas.candidates("chat")) == replicas)
        yield gateway, sims


async def events_of(
    gateway: RunningGateway, path: str, sims: list[SimProcess], kill_after: list[int], **fields: Any
) -> list[str]:
    """The data of one stream's events; whoever answers is killed after so many, again and again."""
    body = {"model": "chat", "stream": True, "temperature": 0, **ASKED[path], **fields}
    kills, events = list(kill_after), []
    async with gateway.http.stream("POST", path, json=body) as answer:
        assert answer.status_code == 200
        async for line in answer.aiter_lines():
            if line:
                events.append(line.removeprefix("data: "))
            if kills and len(events) == kills[0]:
                kills.pop(0)
                await serving(gateway, sims).kill()
    assert not kills
    return events


def serving(gateway: RunningGateway, sims: list[SimProcess]) -> SimProcess:
    (busy,) = {c.endpoint for c in gateway.replicas.candidates("chat") if c.in_flight}
    return next(sim for sim in sims if sim.endpoint == busy)


def told(events: list[str]) -> dict[str, Any]:
    """What a client sees in a stream that is whole."""
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    heads = {tuple(chunk[name] for name in ("id", "object", "created", "model")) for chunk in chunks}
    choices = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
    deltas = [choice.get("delta", {}) for choice in choices]
    text = [choice.get("text") or delta.get("content") for choice, delta in zip(choices, deltas, strict=True)]
    usage = chunks[-1].get("usage")
    return {
        "object": [kind for _, kind, _, _ in heads],  # one head
        "roles": [delta["role"] for delta in deltas if "role" in delta],
        "text": "".join(filter(None, text)),
        "finish": [choice["finish_reason"] for choice in choices if choice["finish_reason"]],
        "usage": usage and {name: usage[name] for name in ("prompt_tokens", "completion_tokens", "total_tokens")},
    }


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize(
    ("kills", "fields"),
    [
        ([1], USAGE),  # as many tokens as are made where nobody says how many
        ([3, 20], {"max_tokens": 50, **USAGE}),
        ([7], {"max_tokens": 200, "stop": "mills", "min_tokens": 9, "seed": 5}),
    ],
    ids=["after one event", "twice", "until a stop string"],
)
async def test_the_client_gets_what_one_engine_would_have_said(
    tmp_path: Path, path: str, kills: list[int], fields: dict[str, Any]
) -> None:
    async with gateway_over(tmp_path, len(kills) + 1) as (gateway, sims):
        undisturbed = await events_of(gateway, path, sims, [], **fields)
        continued = await events_of(gateway, path, sims, kills, **fields)
        page = (await gateway.http.get("/metrics")).text
    assert told(continued) == told(undisturbed)
    assert 'status="200"} 2.0' in page and 'status="502"' not in page


LINE_ENDS = 10_000
"""The token of two, where nothing follows them."""


def said(text: str, finish: str | None = None, by: str = "first") -> bytes:
    head = {"id": by, "object": "text_completion", "created": 1, "model": "chat"}
    chunk = head | {"choices": [{"index": 0, "text": text, "finish_reason": finish}]}
    return b"data: %s\n\n" % json.dumps(chunk).encode()


def goes_on_with(*texts: str) -> Answering:
    """An engine with a character a token, but for two line ends at the end of a text, as of GPT-2's tokenizer."""

    def tokens(text: str) -> list[int]:
        return [*map(ord, text[:-2]), LINE_ENDS] if text.endswith("\n\n") else list(map(ord, text))

    def answering(stream: int, call: EngineCall) -> AsyncIterator[AnswerFrame | bytes]:
        asked = json.loads(call.body)
        if call.path == "/tokenize":
            answer = answers(json.dumps({"tokens": tokens(asked["prompt"]), "max_model_len": 99}).encode())
        elif call.path == "/detokenize":
            text = "".join("\n\n" if token == LINE_ENDS else chr(token) for token in asked["tokens"])
            answer = answers(json.dumps({"prompt": text}).encode())
        else:
            *first, last = texts
            pieces = [said(text, by="other") for text in first]
            pieces += [said(last, "length", by="other"), b"data: [DONE]\n\n"]
            answer = answers(*pieces, content_type=SSE)
        return answer(stream, call)

    return answering


@pytest.mark.parametrize("kept", ["Once.", ""])
async def test_white_space_at_the_end_is_made_again_for_its_tokens_depend_on_what_follows(kept: str) -> None:
    """A slow reader gets several tokens in one piece, so their number is not known either."""
    other = goes_on_with("\n", "\nThe", " end")
    pieces = [said(text) for text in (kept, "\n\n") if text]
    async with gateway_over_hand_made(breaks_after(*pieces), other) as (gateway, engines):
        body = {"model": "chat", "stream": True, "temperature": 0, "prompt": [65], "max_tokens": 20}
        answer = await gateway.http.post(COMPLETIONS, json=body)
        asked = json.loads(engines[1].calls[-1].body)
    whole = told([line.removeprefix("data: ") for line in answer.text.splitlines() if line])
    assert (whole["text"], whole["finish"]) == (f"{kept}\n\nThe end", ["length"]) and len(whole["object"]) == 1
    made = len(kept)
    assert (asked["prompt"], asked["generated_tokens"]) == (list(map(ord, f"A{kept}")), made)
    assert asked["max_tokens"] == 20 - made


@pytest.mark.parametrize("texts", [(" Twice", ""), ("\n", "")], ids=["other", "less"])
async def test_what_is_made_again_must_be_what_was_sent(texts: tuple[str, ...]) -> None:
    async with gateway_over_hand_made(breaks_after(said("Once.\n\n")), goes_on_with(*texts)) as (gateway, _):
        body = {"model": "chat", "stream": True, "temperature": 0, "prompt": "A"}
        answer = await gateway.http.post(COMPLETIONS, json=body)
    assert "said its last words otherwise" in answer.text and "stream_interrupted" in answer.text


SAID = b'data: {"choices": [{"index": 0, "delta": {"content": "Once"}}]}\n\n'


@pytest.mark.parametrize(
    ("fields", "other", "why"),
    [
        ({"n": 2}, GOOD, "it was asked for with 'n'"),
        ({"tools": [{"type": "function"}]}, GOOD, "it was asked for with 'tools'"),
        ({}, answers(b"{}", status=404), "answered /tokenize with status 404"),
        ({}, answers(b"{}", status=503), "3 tries to continue the answer failed"),
        ({}, breaks_after(b"{", content_type=b"application/json"), "3 tries to continue the answer failed"),
    ],
    ids=str,
)
async def test_where_no_exact_continuation_is_it_ends_with_a_clean_error(
    fields: dict[str, Any], other: Answering, why: str
) -> None:
    async with gateway_over_hand_made(breaks_after(SAID, SAID[:20]), other) as (gateway, engines):
        answer = await gateway.ask(stream=True, **fields)
        begun, _, last = answer.text.rpartition("data: ")
        error = json.loads(last)["error"]
        assert begun.encode() == SAID
        assert (error["type"], error["code"]) == ("server_error", "stream_interrupted")
        assert why in error["message"]
        assert bool(engines[1].calls) is not bool(fields)


async def test_an_answer_that_lacks_only_its_end_gets_that_without_another_replica() -> None:
    finish = b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\n\n'
    async with gateway_over_hand_made(breaks_after(SAID, finish)) as (gateway, _):
        assert (await gateway.ask(stream=True, n=1)).content == SAID + finish + b"data: [DONE]\n\n"
        assert "stream_interrupted" in (await gateway.ask(stream=True, n=2)).text  # where another choice has no end
