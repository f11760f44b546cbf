"""How a broken stream goes on: what its client has of it, what is asked elsewhere, and what becomes of the answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepinfer.control_plane.gateway.continuation import (
    CHAT,
    COMPLETIONS,
    check_exact,
    completion_body,
    left_to_make,
    prompt_question,
    wanted,
)
from deepinfer.control_plane.gateway.continued_chunks import Rest, Retelling, told_again
from deepinfer.control_plane.gateway.kept import LONGEST_EVENT, LOOSE_BYTES, Kept
from deepinfer.control_plane.gateway.sent_stream import DONE, NotExact, Sent, data_of, sent_stream
from deepinfer.control_plane.gateway.tokens_of import Tokenizing, exact_tokens

TEXT = 'Über "den" Fluß\n\ndata: [DONE] und 🌊 weiter.'
HEAD = {"id": "a-1", "object": "chat.completion.chunk", "created": 7, "model": "m"}
USAGE = {"prompt_tokens": 5, "completion_tokens": len(TEXT) + 1, "total_tokens": 6 + len(TEXT)}
HI = [{"role": "user", "content": "hi"}]


def event(chunk: Any) -> bytes:
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def streamed(path: str, text: str, usage: Any = None, identity: str = "a-1", kind: str = "") -> bytes:
    """As an engine streams it, a character a token."""
    head = HEAD | {"id": identity, "object": kind or ("text_completion" if path == COMPLETIONS else HEAD["object"])}
    said: list[dict[str, Any]] = [{"text": letter} for letter in text]
    if path == CHAT:
        said = [{"delta": {"role": "assistant", "content": ""}}, *({"delta": {"content": letter}} for letter in text)]
    said.append({"text": ""} if path == COMPLETIONS else {"delta": {}})
    chunks = [{"choices": [{"index": 0, "logprobs": None, "finish_reason": None} | each]} for each in said]
    chunks[-1]["choices"][0]["finish_reason"] = "stop"
    if usage:
        chunks = [chunk | {"usage": None} for chunk in chunks] + [{"choices": [], "usage": usage}]
    return b"".join(event(head | chunk) for chunk in chunks) + DONE


def told(events: bytes) -> tuple[Any, ...]:
    """What a client takes from a stream."""
    sent = sent_stream(events)
    chunks = [json.loads(data) for data in data_of(events) if data != b"[DONE]"]
    roles = [c["delta"]["role"] for chunk in chunks for c in chunk["choices"] if "role" in c.get("delta", {})]
    identities = {(chunk["id"], chunk["object"]) for chunk in chunks}
    return identities, roles, sent.text, sent.finish, sent.usage if sent.usage_is_told else None, sent.done


def went_on(path: str, kept: Kept, usage: Any) -> None:
    """As `going_on.py` does it, with another engine that makes the rest."""
    sent = sent_stream(kept.events())
    asked = wanted(path, json.dumps({"stream_options": {"include_usage": bool(usage)}}).encode())
    if not sent.has_begun:
        again = Retelling(sent, told_again(sent))
        kept.passed(again.of(streamed(path, TEXT, usage, "b-2")))
    elif sent.finish is not None:
        unsaid = bool(usage) and not sent.usage_is_told
        kept.passed(Rest(asked, sent, 5, len(sent.text)).ending(None, 1) if unsaid else b"" if sent.done else DONE)
    else:
        rest = TEXT[len(sent.text) :]
        made = {"prompt_tokens": 99, "completion_tokens": len(rest) + 1, "total_tokens": 99}
        retelling = Retelling(sent, Rest(asked, sent, 5, len(sent.text)).change)
        kept.passed(retelling.of(streamed(COMPLETIONS, rest, made, "b-2")))
        assert retelling.is_over


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize("usage", [USAGE, None], ids=["usage", "no usage"])
def test_wherever_a_stream_is_cut_its_client_gets_all_of_it_once(path: str, usage: Any) -> None:
    whole = streamed(path, TEXT, usage)
    for cut in range(len(whole)):
        kept = Kept()
        passed = kept.passed(whole[:cut])
        assert whole.startswith(passed) and (not passed or passed.endswith(b"\n\n"))
        kept.rest()
        went_on(path, kept, usage)
        identities, *rest = told(kept.events())
        _, *undisturbed = told(whole)
        assert rest == undisturbed and len(identities) == 1


@given(st.lists(st.integers(1, 400), min_size=1), st.booleans())
@settings(deadline=None)
def test_what_is_kept_is_what_was_passed_on_however_it_came(sizes: list[int], windows: bool) -> None:
    whole = streamed(CHAT, TEXT * 8, USAGE)
    whole = whole.replace(b"\n\n", b"\r\n\r\n") if windows else whole
    kept, passed = Kept(), b""
    for piece in cut(whole, sizes):
        passed += kept.passed(piece)
        assert kept.events() == passed
    assert passed == whole and kept.rest() == b""


def cut(data: bytes, sizes: list[int]) -> Iterator[bytes]:
    at = turn = 0
    while at < len(data):
        yield data[at : at + sizes[turn % len(sizes)]]
        at, turn = at + sizes[turn % len(sizes)], turn + 1


def test_a_long_stream_is_kept_small() -> None:
    kept, piece = Kept(), streamed(CHAT, "x")[:160]
    for number in range(5000):
        kept.passed(b'data: {"content": "%d"} %s\n\n' % (number, piece[:150].replace(b"\n", b" ")))
    assert kept._size <= LOOSE_BYTES
    assert sum(map(len, kept._folded)) < len(kept.events()) / 15


def test_an_event_without_an_end_is_passed_on_and_its_stream_is_not_continued() -> None:
    kept = Kept()
    assert kept.passed(b"data: " + b"x" * LONGEST_EVENT)
    assert not kept.is_whole
    assert kept.passed(b"y") == b"y"


@pytest.mark.parametrize(
    "said",
    [
        {"delta": {"tool_calls": [{"index": 0}]}},
        {"delta": {"reasoning_content": "hm"}},
        {"delta": {"reasoning": "hm"}},
        {"delta": {"refusal": "no"}},
        {"delta": {"content": "x"}, "logprobs": {"content": []}},
        {"index": 1, "delta": {"content": "x"}},
        {"text": "x", "token_ids": [1]},
        {"text": "x\N{REPLACEMENT CHARACTER}"},
    ],
    ids=str,
)
def test_what_was_sent_must_be_one_text(said: dict[str, Any]) -> None:
    sent = sent_stream(
        event(HEAD | {"choices": [{"index": 0, "delta": {"content": "a"}}]}) + event({"choices": [said]})
    )
    with pytest.raises(NotExact):
        check_exact(wanted(CHAT, b'{"messages": []}'), sent)


@pytest.mark.parametrize("events", [b"data: {\n\n", b"data: [1]\n\n", b'data: {"type": "message_start"}\n\n'])
def test_other_streams_are_not_continued(events: bytes) -> None:
    with pytest.raises(NotExact):
        sent_stream(events)


EXACT = [
    {
        "temperature": 0,
        "top_p": 0.5,
        "seed": 3,
        "stop": ["x"],
        "max_tokens": 9,
        "min_tokens": 2,
        "logit_bias": {"1": 2},
    },
    {"n": 1, "presence_penalty": 0, "frequency_penalty": 0.0, "repetition_penalty": 1.2, "ignore_eos": True},
    {"tools": [], "tool_choice": "auto", "response_format": {"type": "text"}, "logprobs": False, "guided_json": None},
    {"stream": True, "stream_options": {"include_usage": True}, "user": "me", "metadata": {"a": "b"}},
    {"chat_template_kwargs": {"enable_thinking": False}, "add_generation_prompt": True},
]
INEXACT = [
    {"n": 2},
    {"best_of": 2},
    {"echo": True},
    {"tools": [{"type": "function"}]},
    {"tools": [{"type": "function"}], "tool_choice": "none"},
    {"response_format": {"type": "json_object"}},
    {"guided_regex": "a*"},
    {"structured_outputs": {"regex": "a*"}},
    {"logprobs": True},
    {"logprobs": 0},
    {"prompt_logprobs": 1},
    {"presence_penalty": 0.1},
    {"frequency_penalty": -1},
    {"logits_processors": ["x"]},
    {"bad_words": ["no"]},
    {"reasoning_effort": "low"},
    {"truncate_prompt_tokens": 5},
    {"a_field_of_next_year": 1},
]


@pytest.mark.parametrize("fields", EXACT, ids=str)
def test_a_request_that_can_be_continued(fields: dict[str, Any]) -> None:
    check_exact(wanted(CHAT, json.dumps(fields | {"messages": HI, "model": "m"}).encode()), Sent(texts=["a"]))


@pytest.mark.parametrize("fields", INEXACT, ids=str)
def test_a_request_that_cannot_be_continued_exactly(fields: dict[str, Any]) -> None:
    with pytest.raises(NotExact, match=next(iter(fields))):
        check_exact(wanted(CHAT, json.dumps(fields).encode()), Sent(texts=["a"]))


def test_the_prompt_is_tokenized_as_it_was() -> None:
    def question(path: str, **fields: Any) -> Any:
        return prompt_question(wanted(path, json.dumps({"model": "m", "temperature": 0} | fields).encode()))

    assert question(CHAT, messages=HI, chat_template_kwargs={"a": 1}) == {
        "model": "m",
        "messages": HI,
        "chat_template_kwargs": {"a": 1},
    }
    assert question(COMPLETIONS, prompt="a") == {"model": "m", "prompt": "a", "add_special_tokens": True}
    assert question(COMPLETIONS, prompt=["a"], add_special_tokens=False)["add_special_tokens"] is False
    assert question(COMPLETIONS, prompt=[1, 2]) == question(COMPLETIONS, prompt=[[1, 2]]) == [1, 2]
    refused: list[tuple[str, dict[str, Any]]] = [
        (COMPLETIONS, {"prompt": ["a", "b"]}),
        (COMPLETIONS, {"prompt": [[1], [2]]}),
        (COMPLETIONS, {}),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}]}),
        (CHAT, {"messages": ["hi"]}),
    ]
    for path, fields in refused:
        with pytest.raises(NotExact):
            question(path, **fields)


@pytest.mark.parametrize(
    ("path", "fields", "left"),
    [
        (CHAT, {}, 80),  # of a context of 100, behind a prompt of 15 and 5 tokens that were sent
        (CHAT, {"max_tokens": 30}, 25),
        (CHAT, {"max_completion_tokens": 20, "max_tokens": 30}, 15),
        (CHAT, {"max_tokens": 5}, 0),
        (CHAT, {"max_tokens": 1000}, 80),
        (COMPLETIONS, {}, 11),
        (COMPLETIONS, {"max_tokens": 50}, 45),
    ],
    ids=str,
)
def test_what_is_left_to_make(path: str, fields: dict[str, Any], left: int) -> None:
    assert left_to_make(wanted(path, json.dumps(fields).encode()), 15, 5, 100) == left


def test_the_rest_is_asked_for_as_tokens_with_the_same_sampling() -> None:
    fields = {"model": "m", "messages": HI, "temperature": 0, "min_tokens": 5, "max_tokens": 9, "tools": []}
    usage = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    body = json.loads(completion_body(wanted(CHAT, json.dumps(fields | usage).encode()), [1, 2], [3, 4], 7))
    assert body == {
        "model": "m",
        "temperature": 0,
        "prompt": [1, 2, 3, 4],
        "stream": True,
        "max_tokens": 7,
        "min_tokens": 3,
        "generated_tokens": 2,
        **usage,
    }


def test_usage_that_is_told_in_every_chunk_grows_on() -> None:
    first = {"choices": [{"index": 0, "delta": {"content": "a"}}], "usage": {"completion_tokens": 1}}
    rest = Rest(wanted(CHAT, b"{}"), sent_stream(event(HEAD | first)), 5, 1)
    chunk = {"choices": [{"index": 0, "text": "b"}], "usage": {"prompt_tokens": 6, "completion_tokens": 1}}
    assert (rest.change(chunk) or {})["usage"] == {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}


class Pieces:
    """Words that carry the space before them, one of which some tokenizers put before every text."""

    def __init__(self, *, dummy: bool = False, cleans: bool = False) -> None:
        self._dummy, self._cleans = dummy, cleans

    async def ask(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        if path == "/tokenize":
            text = (" " if self._dummy else "") + body["prompt"]
            return {"tokens": list(map(ord, text.replace("é", "e"))), "max_model_len": 50}
        text = "".join(map(chr, body["tokens"]))
        return {"prompt": text.replace(" .", ".") if self._cleans else text}


@pytest.mark.parametrize(
    ("pieces", "text", "exact"),
    [
        (Pieces(), " the end", True),
        (Pieces(dummy=True), " the end", True),
        (Pieces(dummy=True), "s are", True),
        (Pieces(cleans=True), " the end .", True),
        (Pieces(), "é", False),
    ],
)
def test_a_text_is_turned_back_into_its_tokens_or_not_at_all(pieces: Pieces, text: str, exact: bool) -> None:
    async def found() -> str:
        return "".join(map(chr, await exact_tokens(Tokenizing(pieces.ask, "m"), list(map(ord, "The cat")), text)))

    if exact:
        assert asyncio.run(found()) == text
    else:
        with pytest.raises(NotExact, match="turned back"):
            asyncio.run(found())
