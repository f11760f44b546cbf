"""Clients as people install them, over a real vLLM that chats and one that embeds: every call they have comes through.

The model is small and says what it likes: shapes are looked at, and that two ways to ask get one answer. What a bare
vLLM answers to the same is compared in `test_vllm_parity.py`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import anthropic
import openai
import pytest
from langchain_core.messages import AIMessage
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel, Field

from tests.bare_vllm import ON_CPU
from tests.fleet import Fleet, eventually, metric
from tests.litellm_environment import called_by_litellm
from tests.parity_asks import PERSON, WEATHER

START_SECONDS = 240  # two engines start at once
CHAT, EMBED = "talker", "embedder"
DEPLOYED: dict[str, Any] = {
    "model": "smollm2", "engine": "vllm", "backend": "native", "device": "cpu", "dtype": "float32",
    "max_model_len": 2048, "env": ON_CPU | {"OMP_NUM_THREADS": "1"},
}  # fmt: skip
TALKS = {"enforce_eager": True, "enable_auto_tool_choice": True, "tool_call_parser": "hermes"}
EMBEDS = {"enforce_eager": True, "runner": "pooling", "convert": "embed"}
FUNCTION: Any = WEATHER["function"]
STRICT: Any = {**WEATHER, "function": {**FUNCTION, "strict": True}}  # or vLLM takes any JSON for arguments
HI: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
ASKED: dict[str, Any] = {"model": CHAT, "messages": HI, "temperature": 0, "max_tokens": 6}
ENDLESS: dict[str, Any] = {**ASKED, "max_tokens": 1900, "extra_body": {"ignore_eos": True}}
DIMENSIONS = 576

pytestmark = pytest.mark.timeout(START_SECONDS + 120)


@pytest.fixture(scope="module")
def served(vllm_engine: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with Fleet(tmp_path_factory.mktemp("fleet")).running() as fleet:
        for name, args in ((CHAT, TALKS), (EMBED, EMBEDS)):
            fleet.deploy(name=name, engine_args=args, **DEPLOYED)
        for name in (CHAT, EMBED):
            fleet.wait_ready(name, START_SECONDS)
        yield fleet


@pytest.fixture
def client(served: Fleet) -> OpenAI:
    return served.openai


@pytest.fixture
def claude(served: Fleet) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=served.url, api_key="none", max_retries=0)


class Person(BaseModel):
    age: int = Field(ge=10, le=99)


def test_models(client: OpenAI) -> None:
    assert {CHAT, EMBED} <= {model.id for model in client.models.list()}
    assert client.models.retrieve(CHAT).object == "model"
    with pytest.raises(openai.NotFoundError, match="'gpt-9' is not served here"):
        client.models.retrieve("gpt-9")


def test_a_chat_whole_and_streamed(client: OpenAI) -> None:
    several = client.chat.completions.create(**{**ASKED, "temperature": 1}, n=2, seed=1)
    assert [choice.index for choice in several.choices] == [0, 1]
    whole = client.chat.completions.create(**ASKED, logprobs=True, top_logprobs=2)
    assert whole.usage and whole.usage.completion_tokens == 6
    logprobs = whole.choices[0].logprobs
    assert logprobs and logprobs.content and len(logprobs.content[0].top_logprobs) == 2
    chunks = list(client.chat.completions.create(**ASKED, stream=True, stream_options={"include_usage": True}))
    said = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert "".join(choice.delta.content or "" for choice in said) == whole.choices[0].message.content
    assert said[-1].finish_reason == "length"
    told = chunks[-1].usage
    assert told and told.model_dump(exclude_none=True) == whole.usage.model_dump(exclude_none=True)


async def test_the_asynchronous_client(served: Fleet) -> None:
    async with AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        asked = (client.chat.completions.create(**ASKED) for _ in range(4))
        assert len({answer.choices[0].message.content for answer in await asyncio.gather(*asked)}) == 1
        stream = await client.chat.completions.create(**ASKED, stream=True)
        assert [chunk.choices[0].finish_reason async for chunk in stream][-1] == "length"


def test_tools_whole_and_streamed(client: OpenAI) -> None:
    asked: dict[str, Any] = {**ASKED, "max_tokens": 64, "tools": [STRICT], "tool_choice": "required"}
    message = client.chat.completions.create(**asked).choices[0].message
    assert message.tool_calls and message.tool_calls[0].type == "function"
    call = message.tool_calls[0].function
    with client.chat.completions.stream(**asked) as stream:
        done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
    assert (call.name, json.loads(call.arguments).keys()) == ("weather", {"city"})
    assert (done[0].name, done[0].arguments) == (call.name, call.arguments)
    results: list[Any] = [*HI, message, {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "sun"}]
    assert client.chat.completions.create(**{**ASKED, "messages": results}).choices[0].message.content


def test_structured_output(client: OpenAI) -> None:
    schema: Any = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}
    told = client.chat.completions.create(**{**ASKED, "max_tokens": 48}, response_format=schema)
    assert json.loads(told.choices[0].message.content or "").keys() == {"name", "age"}
    parsed = client.chat.completions.parse(**{**ASKED, "max_tokens": 48}, response_format=Person)
    assert isinstance(parsed.choices[0].message.parsed, Person)


def test_completions(client: OpenAI) -> None:
    asked: dict[str, Any] = {"model": CHAT, "prompt": ["The sea", "The land"], "max_tokens": 4, "temperature": 0}
    whole = client.completions.create(**asked, logprobs=2)
    assert [len(choice.logprobs.tokens or ()) for choice in whole.choices if choice.logprobs] == [4, 4]
    texts = ["", ""]
    for chunk in client.completions.create(**asked, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == [choice.text for choice in whole.choices]


def test_responses(client: OpenAI) -> None:
    asked: dict[str, Any] = {"model": CHAT, "input": "Hi", "max_output_tokens": 6, "temperature": 0}
    whole = client.responses.create(**asked)
    assert whole.output_text and whole.usage and whole.usage.output_tokens == 6
    with client.responses.stream(**asked) as stream:
        kinds = [event.type for event in stream]
        assert stream.get_final_response().output_text == whole.output_text
    assert (kinds[0], kinds[-1]) == ("response.created", "response.completed")
    parsed = client.responses.parse(**{**asked, "max_output_tokens": 48}, text_format=Person)
    assert isinstance(parsed.output_parsed, Person)
    calls: list[Any] = [client.responses.retrieve, client.responses.delete]
    for call in calls:
        with pytest.raises(openai.NotFoundError, match=r"\?model="):
            call(whole.id)
    with pytest.raises(openai.NotFoundError, match=whole.id):
        client.responses.retrieve(whole.id, extra_query={"model": CHAT})


def test_embeddings_and_ranks(served: Fleet, client: OpenAI) -> None:
    floats = client.embeddings.create(model=EMBED, input=["sea", "land"], encoding_format="float")
    packed = client.embeddings.create(model=EMBED, input=["sea", "land"])  # as base64, which the client unpacks
    assert [len(each.embedding) for each in floats.data] == [DIMENSIONS] * 2
    assert packed.data[1].embedding == pytest.approx(floats.data[1].embedding, abs=1e-4)
    ranked = served.http.post("/v1/rerank", json={"model": EMBED, "query": "sea", "documents": ["ship", "hill"]})
    assert {each["index"] for each in ranked.json()["results"]} == {0, 1}
    scored = served.http.post("/v1/score", json={"model": EMBED, "text_1": "sea", "text_2": ["ship", "hill"]})
    assert len(scored.json()["data"]) == 2


def test_what_the_engine_does_not_serve(client: OpenAI) -> None:
    refused: dict[str, Callable[[], Any]] = {
        "/v1/embeddings": lambda: client.embeddings.create(model=CHAT, input="Hi"),
        "/v1/chat/completions": lambda: client.chat.completions.create(model=EMBED, messages=HI),
        "/v1/images/generations": lambda: client.images.generate(model=CHAT, prompt="a cat"),
        "/v1/images/edits": lambda: client.images.edit(model=CHAT, prompt="a cat", image=b"PNG"),
        "/v1/audio/transcriptions": lambda: client.audio.transcriptions.create(model=CHAT, file=b"RIFF" * 1000),
        "/v1/audio/speech": lambda: client.audio.speech.create(model=CHAT, voice="alloy", input="Hi"),
        "/v1/moderations": lambda: client.moderations.create(model=CHAT, input="Hi"),
    }
    for path, call in refused.items():
        with pytest.raises(openai.NotFoundError, match=f"does not serve {path}") as raised:
            call()
        assert raised.value.code == "unknown_url"


def test_who_gives_up_frees_the_engine(served: Fleet, client: OpenAI) -> None:
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.5).chat.completions.create(**ENDLESS)
    stream = client.chat.completions.create(**ENDLESS, stream=True)
    next(iter(stream))
    stream.close()
    running = "vllm:num_requests_running{"

    def free() -> bool:
        page = served.http.get("/metrics", params={"model": CHAT}).text
        in_engine = [line for line in page.splitlines() if line.startswith(running)]
        return in_engine[0].endswith(" 0.0") and not metric(served.http, "deepinfer_num_requests_running", CHAT)

    eventually(free, 10)


def test_anthropic_s_client(claude: anthropic.Anthropic) -> None:
    asked: dict[str, Any] = {"model": CHAT, "max_tokens": 6, "messages": HI, "extra_body": {"temperature": 0}}
    whole = claude.messages.create(**asked, system="Be brief.")
    assert (whole.role, whole.stop_reason, whole.usage.output_tokens) == ("assistant", "max_tokens", 6)
    with claude.messages.stream(**asked, system="Be brief.") as stream:
        assert "".join(stream.text_stream) == whole.content[0].text
        assert stream.get_final_message().usage.output_tokens == 6
    assert claude.messages.count_tokens(model=CHAT, messages=HI).input_tokens > 6
    with pytest.raises(anthropic.NotFoundError, match="'claude' is not served here") as unknown:
        claude.messages.create(**{**asked, "model": "claude"})
    with pytest.raises(anthropic.NotFoundError, match="does not serve /v1/messages") as unserved:
        claude.messages.create(**{**asked, "model": EMBED})
    assert (unknown.value.type, unserved.value.type) == ("not_found_error", "not_found_error")
    with pytest.raises(anthropic.BadRequestError):
        claude.messages.create(**{**asked, "messages": [{"role": "user", "content": "sea " * 3000}]})


def test_anthropic_s_tools(claude: anthropic.Anthropic) -> None:
    tool: Any = {"name": "weather", "input_schema": FUNCTION["parameters"], "strict": True}
    asked: dict[str, Any] = {"model": CHAT, "max_tokens": 64, "messages": HI, "extra_body": {"temperature": 0}}
    whole = claude.messages.create(**asked, tools=[tool], tool_choice={"type": "any"})
    (used,) = (block for block in whole.content if block.type == "tool_use")
    with claude.messages.stream(**asked, tools=[tool], tool_choice={"type": "any"}) as stream:
        (streamed,) = (block for block in stream.get_final_message().content if block.type == "tool_use")
    assert (used.name, whole.stop_reason) == ("weather", "tool_use")
    assert (streamed.name, streamed.input) == (used.name, used.input)


async def test_langchain(served: Fleet) -> None:
    base: dict[str, Any] = {"base_url": f"{served.url}/v1", "api_key": "none", "max_retries": 0}
    chat = ChatOpenAI(model=CHAT, temperature=0, max_completion_tokens=64, stream_usage=True, **base)
    whole = chat.invoke("Hi")
    assert whole.usage_metadata and whole.usage_metadata["output_tokens"] > 0
    assert "".join(str(chunk.content) for chunk in chat.stream("Hi")) == whole.content
    assert [answer.content for answer in chat.batch(["Hi", "Hi"])] == [whole.content] * 2
    assert (await chat.ainvoke("Hi")).content == whole.content
    assert isinstance(chat.with_structured_output(Person, method="json_schema").invoke("I am 30."), Person)
    called = chat.bind_tools([STRICT], tool_choice="any").invoke("What is the capital of France?")
    assert isinstance(called, AIMessage) and called.tool_calls[0]["name"] == "weather"
    embeddings = OpenAIEmbeddings(model=EMBED, check_embedding_ctx_length=False, **base)
    assert [len(each) for each in embeddings.embed_documents(["sea", "land"])] == [DIMENSIONS] * 2


def test_litellm(served: Fleet) -> None:
    told = called_by_litellm(served.url, CHAT, EMBED)
    assert told["whole"] == told["streamed"] == told["hosted_vllm"] != ""
    assert (told["usage"], told["embedded"], told["ranked"]) == (6, [DIMENSIONS] * 2, [0, 1])
    assert told["unknown"][0] == "NotFoundError" and "'gpt-9' is not served here" in told["unknown"][1]
    assert told["too long"][0] in ("BadRequestError", "ContextWindowExceededError")
