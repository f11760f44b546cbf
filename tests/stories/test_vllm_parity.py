"""A vLLM behind deepinfer answers what a bare vLLM with the same flags answers: everything, in the same words.

Requests go to both sides one at a time, because at temperature 0 equal text needs equal batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from openai import APIStatusError, OpenAI
from pydantic import BaseModel, Field

from deepinfer.fleet.places import cache_dir
from tests.bare_vllm import ON_CPU, BareVllm
from tests.fleet import Fleet, eventually
from tests.parity_answers import Answer, ask, shape, told, without_own
from tests.parity_asks import CHATS, COMPLETED, ERRORS, MESSAGES, MODEL, OTHERS, STRUCTURES, WEATHER, Ask
from tests.random_lora import make_lora
from tests.side_by_side import Answers, both_answers, both_say, named, until_alike

LORA = "pirate"
START_SECONDS = 170
TRIES = 3
"""Of a stream, see `until_alike`."""
SETTINGS: dict[str, Any] = {"dtype": "float32", "max_model_len": 2048}
ENGINE_ARGS: dict[str, Any] = {
    "enforce_eager": True,
    "enable_auto_tool_choice": True,
    "tool_call_parser": "hermes",
    "enable_scale_out": True,
    "enable_lora": True,
    "max_lora_rank": 8,
}
ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # two engines share the machine
QUESTION: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]

COMPLETION: dict[str, Any] = {"prompt": "The capital of France is", "temperature": 0, "max_tokens": 6, "logprobs": 1}


@dataclass(frozen=True)
class Sides:
    """Both servers, alive at once."""

    fleet: Fleet
    bare: BareVllm

    def answers(self, request: Ask) -> Answers:
        """(ours, the bare one's)."""
        ours, bare = (
            lambda wanted: ask(self.fleet.url, wanted.path, wanted.body),
            lambda wanted: ask(self.bare.url, wanted.path, wanted.body),
        )
        return both_answers(request, ours, bare)

    def clients(self) -> tuple[OpenAI, OpenAI]:
        bare = OpenAI(base_url=f"{self.bare.url}/v1", api_key="none", max_retries=0, timeout=120)
        return self.fleet.openai, bare


@pytest.fixture(scope="module")
def sides(vllm_engine: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sides]:
    home = tmp_path_factory.mktemp("fleet")
    args = {**ENGINE_ARGS, "lora_modules": [f"{LORA}={make_lora(home / LORA)}"]}
    model = {"model": cache_dir() / "models" / "smollm2-135m-instruct", "served_model_name": MODEL}
    bare = BareVllm(vllm_engine.interpreter, home / "bare.log", {**model, **SETTINGS, **args}, ON_CPU | ONE_THREAD)
    try:
        with Fleet(home).running() as fleet:
            fleet.deploy(
                model=MODEL, engine="vllm", backend="native", device="cpu", **SETTINGS,
                engine_args=args, env=ON_CPU | ONE_THREAD,
            )  # fmt: skip
            fleet.wait_ready(MODEL, START_SECONDS)
            eventually(bare.is_ready, START_SECONDS)
            yield Sides(fleet, bare)
    finally:
        bare.stop()


pytestmark = pytest.mark.timeout(2 * START_SECONDS + 60)


@pytest.mark.parametrize("request_", named(CHATS + STRUCTURES + COMPLETED + OTHERS))
def test_it_answers_as_a_bare_vllm_does(sides: Sides, request_: Ask) -> None:
    ours, bare = both_say(request_, sides.answers, TRIES)
    assert bare[0] == 200, bare
    assert ours == bare


@pytest.mark.parametrize("request_", named(ERRORS))
def test_it_refuses_as_a_bare_vllm_does(sides: Sides, request_: Ask) -> None:
    """Where its client could not read vLLM's own refusal, ours has the status, and the shape of the client's API."""
    ours, bare = sides.answers(request_)
    assert bare.status >= 400, bare
    if _readable(bare, request_.path):
        assert ours.comparable() == bare.comparable()
    else:
        assert (ours.status, _readable(ours, request_.path)) == (bare.status, True)


def _readable(refusal: Answer, path: str) -> bool:
    return "error" in refusal.content and (path != MESSAGES or refusal.content.get("type") == "error")


@pytest.mark.parametrize("stream", [False, True])
def test_an_adapter_is_asked_by_its_name(sides: Sides, stream: bool) -> None:
    request = Ask("", "/v1/completions", {"model": LORA, **COMPLETION, "stream": stream})
    ours, bare = both_say(request, sides.answers, TRIES)
    assert bare[0] == 200, bare
    assert ours == bare


def test_an_adapter_is_listed_and_changes_the_model(sides: Sides) -> None:
    client = sides.fleet.openai
    plain, adapted = (client.completions.create(model=name, **COMPLETION).choices[0] for name in (MODEL, LORA))
    assert plain.logprobs != adapted.logprobs
    assert {LORA, MODEL} <= {model.id for model in client.models.list()}


CHAT_BODY: dict[str, Any] = {"messages": QUESTION, "max_tokens": 1}


def _error(param: str = "NoneType", code: str = "NoneType") -> dict[str, Any]:
    """The shape of the gateway's errors: OpenAI's, in which a code is a word or null. vLLM's is the status."""
    return {"error": {"message": "str", "type": "str", "param": param, "code": code}}


# What the gateway must read to route. The last column is vLLM's own status: it takes a request without a model.
OURS_TO_ANSWER = [
    pytest.param(b'{"model": "smol', (400, _error()), 400, id="broken JSON"),
    pytest.param(b"", (400, _error()), 400, id="no body"),
    pytest.param(b"[]", (400, _error()), 400, id="a list"),
    pytest.param({**CHAT_BODY, "model": 7}, (400, _error("str")), 400, id="a number for a model"),
    pytest.param(CHAT_BODY, (400, _error("str")), 200, id="no model"),
    pytest.param({**CHAT_BODY, "model": "gpt-9"}, (404, _error("str", "str")), 404, id="an unknown model"),
    pytest.param(None, (405, _error(code="str")), 405, id="GET"),
]


@pytest.mark.parametrize(("body", "expected", "of_vllm"), OURS_TO_ANSWER)
def test_what_the_gateway_answers_itself(sides: Sides, body: Any, expected: tuple[int, Any], of_vllm: int) -> None:
    ours, bare = sides.answers(Ask("", "/v1/chat/completions", body))
    assert (ours.status, shape(ours.content)) == expected
    assert bare.status == of_vllm, bare


class Age(BaseModel):
    age: int = Field(ge=10, le=99)


def _chat(client: OpenAI, **options: Any) -> Any:
    return client.chat.completions.create(
        model=MODEL, messages=QUESTION, **{"temperature": 0, "max_tokens": 6, **options}
    )


WITH_THE_CLIENT: dict[str, Callable[[OpenAI], Any]] = {
    "chat": _chat,
    "parsed": lambda c: c.chat.completions.parse(model=MODEL, messages=QUESTION, response_format=Age, temperature=0),
    "tools": lambda c: _chat(c, tools=[WEATHER], tool_choice="required", max_tokens=32),
    "completion": lambda c: c.completions.create(model=MODEL, prompt="The sea", max_tokens=4, temperature=0),
    "responses": lambda c: c.responses.create(model=MODEL, input="Hi", max_output_tokens=4, temperature=0),
}


@pytest.mark.parametrize("call", WITH_THE_CLIENT.values(), ids=WITH_THE_CLIENT)
def test_the_official_client_sees_no_difference(sides: Sides, call: Callable[[OpenAI], Any]) -> None:
    ours, bare = (without_own(call(client).model_dump()) for client in sides.clients())
    assert ours == bare


STREAMED_TO_THE_CLIENT: dict[str, Callable[[OpenAI], Any]] = {
    "chat": lambda c: _chat(c, stream=True, stream_options={"include_usage": True}),
    "completion": lambda c: c.completions.create(
        model=MODEL, prompt="The sea", max_tokens=4, temperature=0, stream=True
    ),
}


@pytest.mark.parametrize("call", STREAMED_TO_THE_CLIENT.values(), ids=STREAMED_TO_THE_CLIENT)
def test_the_official_client_sees_no_difference_in_streams(sides: Sides, call: Callable[[OpenAI], Any]) -> None:
    def seen(client: OpenAI) -> Any:
        return told([{"data": chunk.model_dump()} for chunk in call(client)])

    one, other = sides.clients()
    ours, bare = until_alike(lambda: (seen(one), seen(other)), TRIES)
    assert ours == bare


REFUSED: dict[str, Callable[[OpenAI], Any]] = {
    "too long": lambda c: c.completions.create(model=MODEL, prompt="sea " * 3000),
    "temperature hot": lambda c: _chat(c, extra_body={"temperature": "hot"}),
    "n=0": lambda c: _chat(c, n=0),
}


@pytest.mark.parametrize("call", REFUSED.values(), ids=REFUSED)
def test_the_official_client_raises_the_same(sides: Sides, call: Callable[[OpenAI], Any]) -> None:
    ours, bare = (_raised(call, client) for client in sides.clients())
    assert type(ours) is type(bare)
    assert (ours.status_code, ours.message, ours.body) == (bare.status_code, bare.message, bare.body)


def _raised(call: Callable[[OpenAI], Any], client: OpenAI) -> APIStatusError:
    with pytest.raises(APIStatusError) as raised:
        call(client)
    return raised.value
