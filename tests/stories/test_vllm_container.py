"""A real vLLM in a container of an image as vLLM's own: beside a native one nobody can tell which is which.

The two have one spec and live side by side. What can happen to a container is in test_containers.py; here is what only
vLLM shows: its answers, its KV events, its load, and the death of its core.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

import psutil
import pytest
from openai import APIStatusError

from deepinfer.engine_environments.environment import Environment
from deepinfer.engine_shim.client import EngineClient
from deepinfer.engine_shim.kv_chain import chain, token_bytes
from deepinfer.engine_shim.kv_mirror import KeySet, KvMirror, mirrored
from deepinfer.engine_shim.kv_residency import resident_tokens
from deepinfer.fleet.places import cache_dir
from tests.alive import is_alive
from tests.docker_engine import DockerEngine
from tests.docker_images import vllm_image
from tests.fleet import Fleet, eventually
from tests.parity_answers import Answer, ask, shape, told
from tests.parity_asks import CHATS, COMPLETED, ERRORS, MODEL, OTHERS, STRUCTURES, Ask
from tests.side_by_side import Answers, both_answers, both_say, named, until_alike

BOXED, NATIVE = f"{MODEL}-boxed", f"{MODEL}-plain"
BLOCK = 32
TOKENS = 60
LOADING_SECONDS = 240
TRIES = 2
"""Of a stream, see `until_alike`."""
SPEC: dict[str, Any] = {
    "model": MODEL,
    "device": "cpu",
    "dtype": "float32",
    "max_model_len": 2048,
    "env": {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"},
    "engine_args": {
        "enforce_eager": True,
        "block_size": BLOCK,
        "enable_auto_tool_choice": True,
        "tool_call_parser": "hermes",
        "enable_scale_out": True,
    },
}

T = TypeVar("T")

pytestmark = pytest.mark.timeout(2 * LOADING_SECONDS)


@dataclass(frozen=True)
class Pair:
    """One fleet with both."""

    fleet: Fleet
    engine: DockerEngine
    image: str

    def answers(self, request: Ask) -> Answers:
        """(the container's, the native one's)."""
        return both_answers(
            request, lambda asked: self._answer(asked, BOXED), lambda asked: self._answer(asked, NATIVE)
        )

    def _answer(self, request: Ask, name: str) -> Answer:
        found = ask(self.fleet.url, request.path, renamed(request.body, MODEL, name))
        return Answer(found.status, found.content_type, renamed(found.content, name, MODEL))


def renamed(value: Any, name: str, other: str) -> Any:
    return json.loads(json.dumps(value).replace(name, other))


@pytest.fixture(scope="module")
def pair(
    docker_engine: DockerEngine, vllm_engine: Environment, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    image = vllm_image(docker_engine, vllm_engine)
    with Fleet(tmp_path_factory.mktemp("fleet"), docker=docker_engine.host).running() as fleet:
        fleet.deploy(name=BOXED, backend="docker", docker_image=image, **SPEC)
        fleet.deploy(name=NATIVE, backend="native", **SPEC)
        fleet.wait_ready(BOXED, LOADING_SECONDS)
        fleet.wait_ready(NATIVE, LOADING_SECONDS)
        yield Pair(fleet, docker_engine, image)
    assert docker_engine.ps() == []


# Each kind of answer; what vLLM makes of each of its parameters is in test_vllm_parity.py.
_ASKS = {
    "chat, plain",
    "chat, n=3",
    "chat, logprobs",
    "chat, stream",
    "chat, stream with usage in each",
    "chat, stream n=2",
    "chat, tools, named",
    "chat, tools, named, stream",
    "completion, two prompts",
    "completion, echo and logprobs",
    "completion, stream with usage",
    "completion, stream with logprobs",
}


@pytest.mark.parametrize(
    "request_", named([*(each for each in CHATS + STRUCTURES + COMPLETED if each.name in _ASKS), *OTHERS])
)
def test_both_answer_alike(pair: Pair, request_: Ask) -> None:
    boxed, native = both_say(request_, pair.answers, TRIES)
    assert native[0] == 200, native
    assert boxed == native


@pytest.mark.parametrize("request_", named(ERRORS))
def test_both_refuse_alike(pair: Pair, request_: Ask) -> None:
    boxed, native = pair.answers(request_)
    assert native.status >= 400, native
    assert boxed.comparable() == native.comparable()


def test_both_list_their_models_alike(pair: Pair) -> None:
    told_of = {model["id"]: model for model in pair.fleet.get("/v1/models")}
    assert shape(told_of[BOXED]) == shape(told_of[NATIVE])


@pytest.mark.parametrize("stream", [False, True])
def test_the_same_headers_reach_the_client(pair: Pair, stream: bool) -> None:
    def headers(name: str) -> set[str]:
        body = {"model": name, "prompt": "The sea", "max_tokens": 2, "stream": stream}
        return set(pair.fleet.http.post("/v1/completions", json=body).raise_for_status().headers)

    assert headers(BOXED) == headers(NATIVE)


def test_the_official_client_sees_no_difference(pair: Pair) -> None:
    def seen(name: str) -> Any:
        stream = pair.fleet.openai.chat.completions.create(
            model=name, messages=[{"role": "user", "content": "Hi"}], max_tokens=6, temperature=0, stream=True
        )
        return renamed(told([{"data": chunk.model_dump()} for chunk in stream]), name, MODEL)

    boxed, native = until_alike(lambda: (seen(BOXED), seen(NATIVE)), TRIES)
    assert boxed == native


@pytest.mark.parametrize("options", [{"n": 0}, {"prompt": "sea " * 3000}], ids=str)
def test_the_official_client_raises_the_same(pair: Pair, options: Any) -> None:
    def raised(name: str) -> Any:
        with pytest.raises(APIStatusError) as error:
            pair.fleet.openai.completions.create(**{"model": name, "prompt": "Hi", **options})
        return type(error.value), error.value.status_code, renamed(error.value.body, name, MODEL)

    assert raised(BOXED) == raised(NATIVE)


def test_its_sidecar_tells_the_blocks_of_a_prompt_just_answered(pair: Pair) -> None:
    prompt = [7] * BLOCK * 4 + [8]
    (replica,) = pair.fleet.wait_ready(BOXED)
    pair.fleet.openai.completions.create(model=BOXED, prompt=prompt, max_tokens=2)

    async def resident(client: EngineClient) -> int:
        names, held = chain(token_bytes(prompt), BLOCK), KeySet()
        async with aclosing(mirrored(client, mirror := KvMirror(held))) as states:
            async for _ in states:  # events come a little after the answer they belong to
                if (0, names[-1]) in held:
                    return resident_tokens(names, BLOCK, mirror.groups, held)
        raise AssertionError("the sidecar ended its watch")

    assert asked(replica, resident) == 4 * BLOCK


def test_its_sidecar_tells_its_load_and_its_memory(pair: Pair) -> None:
    (replica,) = pair.fleet.wait_ready(BOXED)

    async def running(client: EngineClient) -> list[int]:
        """Each number once, until nothing runs any more."""
        seen = [0]
        async with aclosing(client.watch()) as states:  # type: ignore[type-var]
            threading.Thread(target=whole_answer, args=(pair.fleet, BOXED)).start()
            async for state in states:
                if (now := state.load.running) != seen[-1]:
                    seen.append(now)
                if len(seen) > 2:
                    return seen
        raise AssertionError("the sidecar ended its watch")

    assert asked(replica, running) == [0, 1, 0]
    assert replica["memory_bytes"] > 1 << 30


def test_delete_lets_a_stream_end_and_then_nothing_is_left(pair: Pair) -> None:
    with ThreadPoolExecutor(1) as pool:
        begun = threading.Event()
        answer = pool.submit(whole_answer, pair.fleet, BOXED, begun.set)
        assert begun.wait(60)
        assert not answer.done()
        pair.fleet.delete(BOXED)
        assert answer.result() == (TOKENS, "length")
    assert pair.engine.ps() == []


def test_its_core_is_killed_and_it_comes_back(pair: Pair) -> None:
    """Deployed as anybody would who has the files: nothing is said of how the image starts its server."""
    pair.fleet.delete(NATIVE)  # the cores are for one
    env = {"VLLM_CPU_KVCACHE_SPACE": "1"}
    pair.fleet.deploy(
        model=MODEL,
        model_path=str(cache_dir() / "models" / "smollm2-135m-instruct"),
        backend="docker",
        docker_image=pair.image,
        device="cpu",
        env=env,
        max_model_len=1024,
        engine_args={"enforce_eager": True},
    )
    (before,) = pair.fleet.wait_ready(MODEL, LOADING_SECONDS)
    assert whole_answer(pair.fleet, MODEL) == (TOKENS, "length")
    members = psutil.Process(before["pid"]).children(recursive=True)
    next(process for process in members if "EngineCore" in "".join(process.cmdline())).kill()
    (told_of,) = eventually(lambda: [r for r in pair.fleet.replicas(MODEL) if "trying again" in r["message"]], 60)
    # Which of the two depends on who looks first, the sidecar or vLLM's own watchdog, which ends the server.
    reasons = ("that its engine is dead (503)", "its server does not listen any more")
    assert told_of["phase"] == "restarting" and any(reason in told_of["message"] for reason in reasons), told_of
    eventually(lambda: not [process.pid for process in members if is_alive(process.pid)])
    (after,) = pair.fleet.wait_ready(MODEL, LOADING_SECONDS)
    assert (after["pid"] != before["pid"], after["restarts"]) == (True, 1)
    assert [c.labels["deepinfer.placement"] for c in pair.engine.ps()].count(after["id"]) == 1
    assert whole_answer(pair.fleet, MODEL) == (TOKENS, "length")


def whole_answer(fleet: Fleet, model: str, begun: Callable[[], None] = lambda: None) -> tuple[int, str | None]:
    """How many tokens its stream had, and why it ended."""
    tokens, finish = 0, None
    for chunk in fleet.openai.completions.create(
        model=model,
        prompt="The sea is",
        max_tokens=TOKENS,
        stream=True,
        extra_body={"ignore_eos": True, "return_token_ids": True},
    ):
        begun()
        tokens += len(chunk.choices[0].token_ids or ())  # type: ignore[attr-defined]
        finish = chunk.choices[0].finish_reason or finish
    return tokens, finish


def asked(replica: dict[str, Any], question: Callable[[EngineClient], Awaitable[T]]) -> T:
    """Of its sidecar."""

    async def ask() -> T:
        client = EngineClient(replica["endpoint"])
        try:
            async with asyncio.timeout(60):
                return await question(client)
        finally:
            await client.close()

    return asyncio.run(ask())
