"""What a sidecar does with servers that are not vLLM's, over real HTTP; the real one is in `contracts/`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Request, Response

from deepinfer.control_plane.gateway.server import listening
from deepinfer.engine_shim.engines.container.health import Answer, Standing, after, failure
from deepinfer.engine_shim.loading import loaded
from deepinfer.engine_shim.served_engine import ServedEngine
from deepinfer.engine_shim.status import ShimStatus
from deepinfer.engine_shim.token_engine import EngineLoad, SamplingParams
from deepinfer.engine_shim.wire import GenerateRequest
from deepinfer.fleet.errors import EngineFailed, EngineWillNotStart, InvalidRequest
from deepinfer.fleet.launch import EX_CONFIG, FAILURE_LINE, ContainerServer
from tests.sidecar import sidecar_launch, sidecar_process

MODELS = json.dumps({"object": "list", "data": [{"id": "chat"}]})
RUNNING = "vllm:num_requests_running 2.0\nvllm:num_requests_waiting 1.0\n"


@dataclass
class Pages:
    """A server that has these pages: a status and a body each."""

    pages: dict[str, tuple[int, str]]
    endpoint: str = ""

    async def page(self, request: Request) -> Response:
        status, body = self.pages.get(request.url.path, (404, "not found"))
        return Response(body, status)


@asynccontextmanager
async def serving(**pages: Any) -> AsyncIterator[Pages]:
    """By default no more than the list of models; `health=(200, "")` is the page /health."""
    server = Pages({"/v1/models": (200, MODELS)})
    server.pages |= {f"/{name}": page for name, page in pages.items()}
    app = FastAPI()
    app.add_api_route("/{path:path}", server.page, methods=["GET", "POST"])
    async with listening(app, "127.0.0.1", 0) as port:
        server.endpoint = f"127.0.0.1:{port}"
        yield server


@asynccontextmanager
async def engine_of(server: Pages) -> AsyncIterator[ServedEngine]:
    engine = await loaded(sidecar_launch(Path("/unused"), ContainerServer(endpoint=server.endpoint)), lambda line: None)
    try:
        yield engine
    finally:
        await engine.close()


async def refusal_of(server: Pages) -> str:
    with pytest.raises(EngineWillNotStart) as refused:
        async with engine_of(server):
            pass
    return str(refused.value)


@pytest.mark.parametrize(
    ("pages", "words"),
    [
        ({"v1/models": (404, "")}, "is no OpenAI server: GET /v1/models answered 404; use an image that serves vLLM's"),
        ({"v1/models": (404, ""), "health": (200, "")}, "GET /v1/models answered 404"),
        ({"v1/models": (200, "<html>Welcome to nginx!")}, "GET /v1/models answered without a list of models"),
        ({"v1/models": (200, "[]")}, "GET /v1/models answered without a list of models"),
        ({"v1/models": (401, "{}"), "health": (200, "")}, "wants an API key (401)"),
        ({"v1/models": (200, '{"data": [{"id": "gpt"}, {"id": "x"}]}')}, "serves 'gpt', 'x', and 'chat' was expected"),
        ({"v1/models": (200, '{"data": []}')}, "serves no model, and 'chat' was expected"),
    ],
)
async def test_a_server_that_will_never_do_is_refused(pages: dict[str, Any], words: str) -> None:
    async with serving(**pages) as server:
        assert words in await refusal_of(server)


async def test_the_sidecar_of_a_server_that_will_never_do_ends_as_refused(tmp_path: Path) -> None:
    async with serving(**{"v1/models": (404, "")}) as server:
        launch = sidecar_launch(tmp_path, ContainerServer(endpoint=server.endpoint))
        async with sidecar_process(tmp_path, launch) as sidecar:
            assert await asyncio.wait_for(sidecar.process.wait(), 30) == EX_CONFIG
            assert "is no OpenAI server" in sidecar.log.read_text()


async def test_a_server_that_still_loads_is_waited_for() -> None:
    async with serving(health=(503, "loading")) as server:
        told: list[str] = []
        launch = sidecar_launch(Path("/unused"), ContainerServer(endpoint=server.endpoint))
        loading = asyncio.create_task(loaded(launch, told.append))
        await asyncio.wait([loading], timeout=1.2)  # it has asked more than once
        assert not loading.done()
        server.pages["/health"] = (200, "")
        engine = await asyncio.wait_for(loading, 20)
        assert told == ["starting the container's server"]
        await engine.close()


async def test_a_server_with_no_more_than_openai_s_endpoints_is_served() -> None:
    async with serving() as server, engine_of(server) as engine:
        info = engine.info()
        assert (info.engine_version, info.max_model_len, info.kv_blocks, info.model) == ("", 0, 0, "chat")
        assert (engine.http_endpoint, engine.load()) == (server.endpoint, EngineLoad())
        assert engine.work_done() != engine.work_done()  # so no stall is ever seen in it
        assert engine.idle is not None
        await asyncio.wait_for(engine.idle(), 20)


async def test_broken_metrics_break_nothing() -> None:
    async with serving(metrics=(500, "oh")) as server, engine_of(server) as engine:
        assert engine.load() == EngineLoad()


async def test_what_runs_already_is_known_at_once() -> None:
    async with serving(metrics=(200, RUNNING)) as server, engine_of(server) as engine:
        assert engine.load() == EngineLoad(running=2, waiting=1)


async def test_changes_that_nobody_told_reach_those_who_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepinfer.engine_shim.engines.container.engine._NAMES_EVERY", 1)
    async with serving(metrics=(200, RUNNING)) as server, engine_of(server) as engine:
        status = ShimStatus(sidecar_launch(Path("/unused"), ContainerServer(endpoint=server.endpoint)))
        status.ready(engine)
        touched = asyncio.Event()
        status.listen(touched.set)
        watching = asyncio.ensure_future(engine.broken())
        server.pages["/metrics"] = (200, RUNNING.replace("2.0", "0.0").replace("1.0", "0.0"))
        await asyncio.wait_for(touched.wait(), 20)
        assert (status.load().running, status.unfinished()) == (0, 0)
        touched.clear()
        server.pages["/v1/models"] = (200, json.dumps({"data": [{"id": "chat"}, {"id": "adapter"}]}))
        await asyncio.wait_for(touched.wait(), 30)
        assert status.names() == ("chat", "org/model", "adapter")
        watching.cancel()


async def test_nothing_is_idle_before_two_looks_saw_nothing() -> None:
    async with serving(metrics=(200, RUNNING)) as server, engine_of(server) as engine:
        assert engine.idle is not None
        waiting = asyncio.ensure_future(engine.idle())
        await asyncio.wait([waiting], timeout=1.2)
        assert not waiting.done()
        server.pages["/metrics"] = (200, "vllm:num_requests_running 0.0\n")
        await asyncio.wait_for(waiting, 20)


async def test_an_engine_that_its_server_calls_dead_has_failed() -> None:
    async with serving(health=(200, "")) as server, engine_of(server) as engine:
        server.pages["/health"] = (503, "")
        assert await asyncio.wait_for(engine.broken(), 30) == "its server says that its engine is dead (503)"


def test_a_server_that_calls_its_engine_dead_and_then_ends_is_quoted() -> None:
    standing = Standing()
    for answer in (Answer.FINE, Answer.DEAD, Answer.CLOSED, Answer.CLOSED, Answer.CLOSED):
        assert failure(standing) is None
        standing = after(standing, answer, seconds=0.5)
    assert failure(standing) == "its server said that its engine is dead (503), and ended"


async def test_a_server_that_is_gone_ends_its_sidecar_with_the_reason(tmp_path: Path) -> None:
    async with serving(health=(200, "")) as server:
        launch = sidecar_launch(tmp_path, ContainerServer(endpoint=server.endpoint))
        sidecar = sidecar_process(tmp_path, launch)
        running = await sidecar.__aenter__()
        await running.ready()
    try:
        assert await asyncio.wait_for(running.process.wait(), 30) == 1
        assert running.log.read_text().endswith(f"{FAILURE_LINE}its server does not listen any more\n")
    finally:
        await sidecar.__aexit__(None, None, None)


@pytest.mark.parametrize(
    ("page", "error", "words"),
    [
        ((400, '{"error": {"message": "too long"}}'), InvalidRequest, "too long"),
        ((404, '{"message": "no such model"}'), InvalidRequest, "no such model"),
        ((500, "oh"), EngineFailed, "answered 500: oh"),
        ((200, 'data: {"error": {"message": "died"}}\n\n'), EngineFailed, "broke the answer off: died"),
    ],
)
async def test_a_typed_request_that_the_server_refuses(
    page: tuple[int, str], error: type[Exception], words: str
) -> None:
    async with serving(**{"v1/completions": page}) as server, engine_of(server) as engine:
        with pytest.raises(error, match=words):
            async for _ in engine.generate(GenerateRequest("r", (1,), SamplingParams(max_tokens=1))):
                pass
