"""The shim's OpenAI application: the official client over HTTP, and what is refused."""

from __future__ import annotations

import asyncio
import json
import math
import socket
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import httpx
import openai
import pytest
import uvicorn
from pydantic import BaseModel

from deepinfer.engine_shim.engine_args import SimArgs
from deepinfer.engine_shim.engines.sim import SimEngine
from deepinfer.engine_shim.openai_app.app import openai_app
from deepinfer.engine_shim.text.byte_tokenizer import ByteTokenizer
from deepinfer.engine_shim.text_generation import TextGenerator
from deepinfer.engine_shim.token_engine import TokenDelta, TokenEngine, TokenLogprob, TokenRequest
from deepinfer.fleet.errors import EngineFailed

HI: list[Any] = [{"role": "user", "content": "hi there"}]


class Person(BaseModel):
    age: int


LIMIT = 512


def sim() -> SimEngine:
    args = SimArgs(seconds_per_output_token=0.0, prefill_tokens_per_second=1e9, block_size=4)
    return SimEngine("m", ByteTokenizer(), args, LIMIT)


class Scripted(SimEngine):
    """Makes these tokens, then fails if it has not ended: what no simulated load provokes."""

    def __init__(self, deltas: list[TokenDelta]) -> None:
        super().__init__("m", ByteTokenizer(), SimArgs())
        self.deltas = deltas

    async def generate(self, request: TokenRequest) -> AsyncIterator[TokenDelta]:
        for delta in self.deltas:
            yield delta
            await asyncio.sleep(0)
        raise EngineFailed("The device is lost.")


@asynccontextmanager
async def client_of(engine: TokenEngine) -> AsyncIterator[openai.AsyncOpenAI]:
    app = openai_app(TextGenerator(engine, ByteTokenizer()), ("m", "org/m"))
    server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_level="warning"))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(server.serve([listening]))
            async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
                yield client
            server.should_exit = True


@pytest.fixture
async def client() -> AsyncIterator[openai.AsyncOpenAI]:
    async with client_of(sim()) as client:
        yield client


async def post(path: str, body: Any, engine: TokenEngine | None = None) -> httpx.Response:
    transport = httpx.ASGITransport(openai_app(TextGenerator(engine or sim(), ByteTokenizer()), ("m", "org/m")))
    async with httpx.AsyncClient(transport=transport, base_url="http://engine") as http:
        return await http.post(path, content=body if isinstance(body, bytes) else json.dumps(body).encode())


async def test_chat(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model="org/m", messages=HI, user="u", metadata={"a": "b"})
    choice, usage = answer.choices[0], answer.usage
    assert (answer.object, answer.model, choice.index, choice.finish_reason) == ("chat.completion", "m", 0, "stop")
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert usage is not None
    assert usage.completion_tokens == len(choice.message.content) + 1  # a token a letter, and the end
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    again = (await client.chat.completions.create(model="m", messages=HI)).usage
    assert again is not None
    assert again.prompt_tokens_details is not None
    assert again.prompt_tokens_details.cached_tokens == (usage.prompt_tokens - 1) // 4 * 4


async def test_a_streamed_chat_says_the_same(client: openai.AsyncOpenAI) -> None:
    whole = await client.chat.completions.create(model="m", messages=HI, n=2)
    chunks = [
        chunk
        async for chunk in await client.chat.completions.create(
            model="m", messages=HI, n=2, stream=True, stream_options={"include_usage": True}
        )
    ]
    for number, choice in enumerate(whole.choices):
        mine = [each.choices[0] for each in chunks if each.choices and each.choices[0].index == number]
        assert (mine[0].delta.role, mine[0].delta.content) == ("assistant", "")
        assert "".join(each.delta.content or "" for each in mine) == choice.message.content
        assert [each.finish_reason for each in mine] == [None] * (len(mine) - 1) + ["stop"]
        assert mine[-1].delta.content is None
    assert (chunks[-1].choices, {chunk.id for chunk in chunks}) == ([], {chunks[0].id})
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens
    assert all(chunk.usage is None for chunk in chunks[:-1])


async def test_completions_of_every_kind_of_prompt(client: openai.AsyncOpenAI) -> None:
    create = client.completions.create
    text = await create(model="m", prompt="abc")
    assert text.object == "text_completion"
    assert (len(text.choices[0].text), text.choices[0].finish_reason) == (16, "length")
    tokens = await create(model="m", prompt=list(b"abc"))
    assert tokens.choices[0].text == text.choices[0].text
    several = await create(model="m", prompt=["abc", "xyz"], n=2, echo=True)
    texts = [choice.text for choice in several.choices]
    assert texts[0] == texts[1] == "abc" + text.choices[0].text
    assert texts[2].startswith("xyz")
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
    assert several.usage is not None
    assert (several.usage.prompt_tokens, several.usage.completion_tokens) == (6, 64)
    lists = await create(model="m", prompt=[list(b"abc"), list(b"xyz")], echo=True)
    assert [choice.text for choice in lists.choices] == texts[::2]


async def test_a_streamed_completion_says_the_same(client: openai.AsyncOpenAI) -> None:
    whole = await client.completions.create(model="m", prompt="abc", echo=True, max_tokens=100)
    chunks = [
        c
        async for c in await client.completions.create(model="m", prompt="abc", echo=True, max_tokens=100, stream=True)
    ]
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert chunks[-1].choices[0].finish_reason == "stop"


async def test_logprobs_of_a_chat(client: openai.AsyncOpenAI) -> None:
    fields: dict[str, Any] = {"model": "m", "messages": HI, "logprobs": True, "top_logprobs": 2, "max_tokens": 5}
    choice = (await client.chat.completions.create(**fields)).choices[0]
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    assert "".join(entry.token for entry in choice.logprobs.content) == choice.message.content
    first = choice.logprobs.content[0]
    assert first.bytes == list(first.token.encode())
    assert math.exp(first.logprob) == pytest.approx(0.5, abs=1e-3)
    assert [len(entry.top_logprobs) for entry in choice.logprobs.content] == [2] * 5
    streamed = [
        chunk.choices[0].logprobs async for chunk in await client.chat.completions.create(**fields, stream=True)
    ]
    assert [entry for each in streamed if each for entry in each.content or ()] == choice.logprobs.content


async def test_logprobs_of_a_completion(client: openai.AsyncOpenAI) -> None:
    fields: dict[str, Any] = {"model": "m", "prompt": "abc", "logprobs": 2, "max_tokens": 5}
    choice = (await client.completions.create(**fields)).choices[0]
    assert choice.logprobs is not None
    assert choice.logprobs.tokens is not None
    assert "".join(choice.logprobs.tokens) == choice.text
    assert choice.logprobs.text_offset == [0, 1, 2, 3, 4]
    assert choice.logprobs.top_logprobs is not None
    assert [len(top) for top in choice.logprobs.top_logprobs] == [2] * 5
    streamed = [chunk.choices[0].logprobs async for chunk in await client.completions.create(**fields, stream=True)]
    assert [offset for each in streamed if each for offset in each.text_offset or ()] == [0, 1, 2, 3, 4]


async def test_stop_strings_end_an_answer_and_abort_it(client: openai.AsyncOpenAI) -> None:
    text = (await client.chat.completions.create(model="m", messages=HI)).choices[0].message.content
    assert text is not None
    stop = text[10:13]
    cut = await client.chat.completions.create(model="m", messages=HI, stop=["never", stop])
    assert (cut.choices[0].message.content, cut.choices[0].finish_reason) == (text[: text.index(stop)], "stop")
    kept = await client.chat.completions.create(
        model="m", messages=HI, stop=stop, extra_body={"include_stop_str_in_output": True}
    )
    assert kept.choices[0].message.content == text[: text.index(stop) + 3]
    streamed = await client.chat.completions.create(model="m", messages=HI, stop=stop, stream=True)
    pieces = [chunk.choices[0].delta.content or "" async for chunk in streamed]
    assert "".join(pieces) == cut.choices[0].message.content


async def test_models_and_tokens(client: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == ["m", "org/m"]
    tokens = (await post("/tokenize", {"model": "m", "prompt": "hé"})).json()
    assert tokens == {"tokens": list("hé".encode()), "count": 3, "max_model_len": LIMIT}
    assert (await post("/detokenize", {"tokens": tokens["tokens"]})).json() == {"prompt": "hé"}
    chat = (await post("/tokenize", {"messages": HI})).json()
    assert (await post("/detokenize", {"tokens": chat["tokens"]})).json()["prompt"].endswith("<|im_start|>assistant\n")


async def test_a_failure_before_the_first_token_is_a_clean_error() -> None:
    for stream in (True, False):
        answer = await post("/v1/chat/completions", {"messages": HI, "stream": stream}, Scripted([]))
        assert (answer.status_code, answer.json()["error"]["message"]) == (500, "The device is lost.")


async def test_a_failure_after_it_is_an_event_and_the_stream_is_not_done() -> None:
    body = {"messages": HI, "stream": True}
    answer = await post("/v1/chat/completions", body, Scripted([TokenDelta((104,)), TokenDelta((105,))]))
    *chunks, failure = answer.text.strip().split("\n\n")
    assert len(chunks) == 3
    assert json.loads(failure.removeprefix("data: "))["error"]["code"] == "engine_failed"
    assert "[DONE]" not in answer.text
    async with client_of(Scripted([TokenDelta((104,))])) as client:
        with pytest.raises(openai.APIError, match="device is lost"):
            async for _ in await client.chat.completions.create(model="m", messages=HI, stream=True):
                pass


async def test_characters_are_whole_in_every_chunk() -> None:
    party = [TokenDelta((byte,), (TokenLogprob(byte, -math.inf),)) for byte in "🎉!".encode()]
    body = {"messages": HI, "stream": True, "logprobs": True}
    answer = await post("/v1/chat/completions", body, Scripted(party))
    chunks = [json.loads(line.removeprefix("data: ")) for line in answer.text.strip().split("\n\n")[:-1]]
    assert [chunk["choices"][0]["delta"]["content"] for chunk in chunks] == ["", "", "", "", "🎉", "!"]
    assert chunks[1]["choices"][0]["logprobs"]["content"][0]["logprob"] == -9999.0


BAD_CHAT: list[tuple[dict[str, Any], str]] = [
    ({"messages": []}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": [{"role": "king", "content": "hi"}]}, "messages.0.role"),
    ({"messages": [{"role": "user"}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content.0"),
    ({"temperature": 2.5}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"min_p": 1.5}, "min_p"),
    ({"presence_penalty": 3}, "presence_penalty"),
    ({"frequency_penalty": -3}, "frequency_penalty"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"seed": 1.5}, "seed"),
    ({"stop": ["a"] * 17}, "stop"),
    ({"stop": [""]}, "stop.0"),
    ({"n": 0}, "n"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_completion_tokens": 0}, "max_completion_tokens"),
    ({"max_tokens": LIMIT}, "max_tokens"),
    ({"min_tokens": 9, "max_tokens": 8}, "min_tokens"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"logit_bias": {"cat": 1}}, "logit_bias"),
    ({"logit_bias": {"9999": 1}}, "logit_bias"),
    ({"logit_bias": {"1": 101}}, "logit_bias.1"),
    ({"tools": [{"type": "function"}]}, "tools"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
    ({"response_format": {"type": "json_schema"}}, "response_format"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"echo": True}, "echo"),
    ({"return_token_ids": True}, "return_token_ids"),
    ({"include_reasoning": False}, "include_reasoning"),
    ({"cache_salt": "mine"}, "cache_salt"),
    ({"modalities": ["audio"]}, "modalities"),
    ({"chat_template": "{{ 1 }}"}, "chat_template"),
    ({"guided_json": {}}, "guided_json"),
    ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
    ({"continue_final_message": True}, "continue_final_message"),
]
BAD_COMPLETION: list[tuple[dict[str, Any], str]] = [
    ({"prompt": None}, "prompt"),
    ({"prompt": ""}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": [[]]}, "prompt"),
    ({"prompt": [1, "a"]}, "prompt"),
    ({"prompt": [-1]}, "prompt"),
    ({"prompt": [259]}, "prompt"),
    ({"prompt": ["a"] * 600, "n": 2}, "prompt"),
    ({"logprobs": 21}, "logprobs"),
    ({"logprobs": 1, "echo": True}, "echo"),
    ({"best_of": 3}, "best_of"),
    ({"suffix": "end"}, "suffix"),
    ({"vllm_xargs": {"a": 1}}, "vllm_xargs"),
    ({"max_tokens": 0}, "max_tokens"),
]
FINE: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"temperature": 0, "seed": None, "stop": None, "top_k": -1, "logit_bias": {"5": -100}}),
    (
        "/v1/chat/completions",
        {"tools": [], "tool_choice": "auto", "response_format": {"type": "text"}, "echo": False, "what": 1},
    ),
    ("/v1/chat/completions", {"tools": [{"type": "function"}], "tool_choice": "none", "max_completion_tokens": 3}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]}),
    ("/v1/completions", {"best_of": 1, "suffix": None, "store": True, "stop": "x", "stop_token_ids": [3]}),
]


@pytest.mark.parametrize(("fields", "param"), BAD_CHAT, ids=[f"{param}-{n}" for n, (_, param) in enumerate(BAD_CHAT)])
async def test_a_wrong_chat_is_refused_by_the_field_s_name(fields: dict[str, Any], param: str) -> None:
    answer = await post("/v1/chat/completions", {"model": "m", "messages": HI} | fields)
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param)


@pytest.mark.parametrize(
    ("fields", "param"), BAD_COMPLETION, ids=[f"{param}-{n}" for n, (_, param) in enumerate(BAD_COMPLETION)]
)
async def test_a_wrong_completion_is_refused_by_the_field_s_name(fields: dict[str, Any], param: str) -> None:
    answer = await post("/v1/completions", {"model": "m", "prompt": "abc"} | fields)
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param)


@pytest.mark.parametrize(("path", "fields"), FINE, ids=range(len(FINE)))
async def test_what_clients_send_without_meaning_it_is_taken(path: str, fields: dict[str, Any]) -> None:
    answer = await post(path, {"model": "m", "messages": HI, "prompt": "abc"} | fields)
    assert answer.status_code == 200, answer.text


async def test_a_prompt_that_is_too_long_is_told_both_numbers() -> None:
    answer = await post("/v1/completions", {"prompt": "a" * LIMIT})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "context_length_exceeded", "prompt")
    assert error["message"].count(str(LIMIT)) == 2
    long = await post("/v1/chat/completions", {"messages": [{"role": "user", "content": "a" * 100_000}]})
    assert (long.status_code, long.json()["error"]["param"]) == (400, "messages")


async def test_the_default_length_is_no_wish() -> None:
    answer = (await post("/v1/completions", {"prompt": "a" * (LIMIT - 3), "ignore_eos": True})).json()
    assert (answer["usage"]["completion_tokens"], answer["choices"][0]["finish_reason"]) == (3, "length")


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"messages": "\xff"}'])
async def test_a_body_that_is_no_json_object_is_refused(body: bytes) -> None:
    answer = await post("/v1/chat/completions", body)
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")


async def test_unknown_models_and_paths_are_not_found() -> None:
    model = await post("/v1/chat/completions", {"model": "other", "messages": HI})
    assert (model.status_code, model.json()["error"]["code"]) == (404, "model_not_found")
    path = await post("/v1/audio/speech", {})
    assert (path.status_code, path.json()["error"]["code"]) == (404, "unknown_url")
    assert (await post("/v1/models", {})).status_code == 405


async def test_the_client_s_other_calls_are_refused_with_a_sentence(client: openai.AsyncOpenAI) -> None:
    refused: list[Coroutine[Any, Any, Any]] = [
        client.embeddings.create(model="m", input="hi"),
        client.responses.create(model="m", input="hi"),
        client.images.generate(model="m", prompt="a cat"),
        client.audio.transcriptions.create(model="m", file=b"RIFF"),
    ]
    for call in refused:
        with pytest.raises(
            openai.NotFoundError, match=r"does not serve /v1/.*; it serves /v1/chat/completions, "
        ) as error:
            await call
        assert error.value.code == "unknown_url"
    with pytest.raises(openai.BadRequestError, match="'response_format' is not supported"):
        await client.chat.completions.parse(model="m", messages=HI, response_format=Person)
