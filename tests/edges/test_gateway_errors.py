"""What goes wrong in a request, and what its client is told: the status, in OpenAI's shape, with the field named."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest
import pytest_asyncio

from deepinfer.control_plane.gateway.server import CannotListen, bound, listening
from deepinfer.engine_shim.frames import AnswerFrame, EngineCall
from deepinfer.fleet.config import FrontLimits
from deepinfer.fleet.resources import Phase
from deepinfer.fleet.snapshot import Snapshot
from tests.fleet_values import deployment, placement, status
from tests.gateway_parts import RunningGateway, fleet_of, management, running_gateway, until
from tests.hand_made_engine import HandMadeEngine, answers, hand_made_engine

LIMIT = FrontLimits().max_body_bytes
CHAT = "/v1/chat/completions"


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def engine() -> AsyncIterator[HandMadeEngine]:
    async with hand_made_engine() as engine:
        yield engine


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def gateway(engine: HandMadeEngine) -> AsyncIterator[RunningGateway]:
    """One ready replica of "chat"; "cold" is deployed, but starting."""
    ready = fleet_of(engine.endpoint)
    fleet = Snapshot(
        deployments=(*ready.deployments, deployment("cold", "cold-model")),
        placements=(*ready.placements, placement("cold")),
        statuses=(*ready.statuses, status("cold-aaaaa-0", phase=Phase.STARTING, message="loading 1 of 4")),
    )
    async with running_gateway(fleet) as gateway:
        await until(lambda: gateway.replicas.candidates("chat"))
        yield gateway


pytestmark = pytest.mark.asyncio(loop_scope="module")


def told(answer: httpx.Response) -> dict[str, Any]:
    """The error, whose shape is OpenAI's whatever went wrong."""
    assert answer.headers["content-type"] == "application/json"
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        (b"", None, "empty"),
        (b"hello", None, "not valid JSON: invalid character (byte 0)"),
        (b'{"model": "chat", "messages": [}', None, "not valid JSON: invalid character (byte 31)"),
        (b'{"model": "chat"', None, "not valid JSON: it ends too early"),
        (b'{"model": "chat"} x', None, "trailing characters"),
        (b'{"model": "chat", "temperature": NaN}', None, "(byte 33)"),
        (b'{"model": "chat", "user": "\xff"}', None, "not valid UTF-8 (byte 27)"),
        (b'{"model": "chat", "a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", None, "nested too deeply"),
        (b"[]", None, "must be a JSON object: expected `object`, got `array`"),
        (b'"chat"', None, "must be a JSON object"),
        (b"{}", "model", "has no 'model'"),
        (b'{"model": null}', "model", "has no 'model'"),
        (b'{"model": 3}', "model", "must be a string"),
        (b'{"model": ["chat"]}', "model", "must be a string"),
    ],
)
async def test_a_body_that_cannot_be_read_is_a_400(
    gateway: RunningGateway, engine: HandMadeEngine, body: bytes, param: str | None, words: str
) -> None:
    before = len(engine.calls)
    answer = await gateway.http.post(CHAT, content=body)
    error = told(answer)
    assert (answer.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert words in error["message"]
    assert len(engine.calls) == before


async def test_an_unknown_model_is_a_404_that_says_what_is_served(gateway: RunningGateway) -> None:
    answer = await gateway.ask(model="gpt-4")
    error = told(answer)
    assert (answer.status_code, error["code"], error["param"]) == (404, "model_not_found", "model")
    assert error["message"] == "The model 'gpt-4' is not served here. Served: chat, cold, cold-model, org/model."


async def test_a_model_that_is_not_ready_is_a_503_that_says_what_it_waits_for(gateway: RunningGateway) -> None:
    answer = await gateway.ask(model="cold-model")
    assert (answer.status_code, told(answer)["code"]) == (503, "no_ready_replica")
    assert "cold-aaaaa-0 on node-1 is starting: loading 1 of 4" in told(answer)["message"]
    assert int(answer.headers["retry-after"]) > 0


async def test_openai_s_client_knows_these_errors(gateway: RunningGateway) -> None:
    client = openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0)
    async with client:
        with pytest.raises(openai.NotFoundError, match="is not served here"):
            await client.chat.completions.create(model="gpt-4", messages=[])
        with pytest.raises(openai.InternalServerError, match="no replica is ready"):
            await client.chat.completions.create(model="cold", messages=[])


@pytest.mark.parametrize("declared", [True, False], ids=["content-length", "chunked"])
async def test_a_body_that_is_too_large_is_a_413(gateway: RunningGateway, declared: bool) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(LIMIT // 2**20 + 1):
            yield b" " * 2**20

    content = b" " * (LIMIT + 1) if declared else chunks()
    answer = await gateway.http.post(CHAT, content=content)
    assert (answer.status_code, told(answer)["code"]) == (413, "body_too_large")
    assert "16 MiB" in told(answer)["message"]


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", CHAT, "POST"),
        ("DELETE", "/tokenize", "POST"),
        ("HEAD", "/v1/images/generations", "POST"),
        ("OPTIONS", "/v1/embeddings", "POST"),
        ("PUT", "/v1/audio/transcriptions", "POST"),
        ("POST", "/v1/models", "GET, HEAD"),
        ("DELETE", "/v1/models/chat", "GET, HEAD"),
        ("PUT", "/health", "GET, HEAD"),
    ],
)
async def test_another_method_is_a_405(gateway: RunningGateway, method: str, path: str, allowed: str) -> None:
    answer = await gateway.http.request(method, path)
    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)
    assert method == "HEAD" or told(answer)["code"] == "method_not_allowed"


@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_a_response_s_id_does_not_tell_which_engine_has_it(gateway: RunningGateway, method: str) -> None:
    answer = await gateway.http.request(method, "/v1/responses/resp_1")
    assert (answer.status_code, told(answer)["code"]) == (404, "response_not_found")
    assert "?model=NAME" in told(answer)["message"]


async def test_what_is_not_the_gateways_goes_to_the_management_api(gateway: RunningGateway) -> None:
    assert (await gateway.http.post("/v1/deployments", json={"model": "chat"})).json() == {
        "seen": "by the management API"
    }
    assert (await gateway.http.get("/docs")).status_code == 200
    assert (await gateway.http.get("/nothing")).status_code == 404


async def test_models_are_listed_ready_or_not(gateway: RunningGateway) -> None:
    listed = (await gateway.http.get("/v1/models")).json()
    assert [(m["id"], m["ready"]) for m in listed["data"]] == [
        ("chat", True),
        ("cold", False),
        ("cold-model", False),
        ("org/model", True),
    ]
    one = (await gateway.http.get("/v1/models/org/model")).json()
    assert one == {
        "id": "org/model",
        "object": "model",
        "created": 1767225600,
        "owned_by": "deepinfer",
        "ready": True,
    }
    missing = await gateway.http.get("/v1/models/gpt-4")
    assert (missing.status_code, told(missing)["code"]) == (404, "model_not_found")


async def test_health_is_alive_and_head_has_no_body(gateway: RunningGateway) -> None:
    assert (await gateway.http.get("/health")).json() == {"status": "ok"}
    assert (await gateway.http.head("/health")).content == b""


async def test_before_the_store_was_read_nothing_is_said_to_be_missing() -> None:
    async with running_gateway() as gateway:
        for answer in (await gateway.http.get("/ready"), await gateway.ask()):
            assert (answer.status_code, told(answer)["type"]) == (503, "service_unavailable")
        gateway.replicas.update(Snapshot())
        assert (await gateway.http.get("/ready")).status_code == 200
        assert "deepinfer deploy" in told(await gateway.ask())["message"]


async def test_counts_have_bounded_labels(gateway: RunningGateway) -> None:
    await gateway.ask(model="no-such-model-" + "x" * 50)
    await gateway.http.post("/v1/any/path", json={"model": "chat"})
    page = (await gateway.http.get("/metrics")).text
    assert "no-such-model" not in page and "any/path" not in page
    assert f'deepinfer_requests_total{{model_name="",path="{CHAT}",status="404"}}' in page
    assert 'deepinfer_requests_total{model_name="chat",path="other",status="200"} 1.0' in page
    assert 'deepinfer_replicas{model_name="chat",state="ready"} 1.0' in page
    assert 'deepinfer_replicas{model_name="cold",state="starting"} 1.0' in page
    assert 'deepinfer_num_requests_running{model_name="chat",replica="chat-aaaaa-0"} 0.0' in page


async def test_an_address_in_use_is_said_in_one_sentence(gateway: RunningGateway) -> None:
    port = int(gateway.url.rpartition(":")[2])
    with pytest.raises(CannotListen, match=f"Cannot listen on 127.0.0.1:{port}: Address already in use"):
        async with listening(management(), "127.0.0.1", port):
            raise AssertionError("two servers at one address")


async def test_connections_do_not_wait_for_each_others_acknowledgements() -> None:
    with bound("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_the_end_waits_for_running_answers_but_not_for_idle_connections() -> None:
    begun, let_go = asyncio.Event(), asyncio.Event()

    async def slow(stream: int, call: EngineCall) -> AsyncIterator[AnswerFrame | bytes]:
        begun.set()
        await let_go.wait()
        async for frame in answers(b'{"late": true}')(stream, call):
            yield frame

    async with hand_made_engine(answering=slow) as engine, httpx.AsyncClient() as http, asyncio.TaskGroup() as tasks:
        async with running_gateway(fleet_of(engine.endpoint)) as gateway:
            await until(lambda: gateway.replicas.candidates("chat"))
            asking = tasks.create_task(http.post(gateway.url + CHAT, content=b'{"model": "chat"}'))
            await begun.wait()
            asyncio.get_running_loop().call_later(0.3, let_go.set)
        assert asking.done() and asking.result().json() == {"late": True}
