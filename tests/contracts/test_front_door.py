"""The front door over real sockets: every path without a key, what a key opens, and what browsers are told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import openai
import pytest
import pytest_asyncio
from starlette.routing import Route

from deepinfer.control_plane.access.key_ring import KeyRing
from deepinfer.control_plane.access.web_pages import WebPages
from deepinfer.control_plane.gateway.app import Gateway
from deepinfer.control_plane.gateway.front_door import FrontDoor
from deepinfer.control_plane.gateway.parts import Parts
from deepinfer.control_plane.gateway.relayed_paths import RELAYED_PATHS
from deepinfer.control_plane.gateway.server import listening
from deepinfer.control_plane.management.app import management_app
from deepinfer.control_plane.router.replicas import Replicas
from deepinfer.engine_shim.frames import Head
from deepinfer.fleet.errors import StoreUnavailable
from deepinfer.fleet.mirror import Mirror
from tests.gateway_parts import RunningGateway, fleet_of, running_gateway, until
from tests.hand_made_engine import HandMadeEngine, answers, hand_made_engine
from tests.keyed import ADMIN, ADMIN_TOKEN, KEYS, LIMITED, USER, bearer, ring_of

CHAT = "/v1/chat/completions"
PAGE = "https://chat.example"
EVENTS = answers(b"data: 1\n\n", b"data: [DONE]\n\n", content_type=b"text/event-stream")
pytestmark = pytest.mark.asyncio(loop_scope="module")


def not_connected() -> Mirror:
    raise StoreUnavailable


@asynccontextmanager
async def gateway_over(
    engine: HandMadeEngine, keys: KeyRing | None, pages: WebPages | None = None
) -> AsyncIterator[RunningGateway]:
    async with running_gateway(fleet_of(engine.endpoint), keys=keys, pages=pages) as gateway:
        await until(lambda: gateway.replicas.candidates("chat"))
        yield gateway


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def engine() -> AsyncIterator[HandMadeEngine]:
    async with hand_made_engine() as engine:
        yield engine


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def keyed(engine: HandMadeEngine) -> AsyncIterator[RunningGateway]:
    """Keys are required; pages of `PAGE` may ask."""
    pages = WebPages(frozenset((PAGE.encode(),)), keyless=False)
    async with gateway_over(engine, ring_of(*KEYS), pages) as gateway:
        yield gateway


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def open_to_all(engine: HandMadeEngine) -> AsyncIterator[RunningGateway]:
    """No keys are required, on loopback."""
    async with gateway_over(engine, None) as gateway:
        yield gateway


def anthropic_type(answer: httpx.Response) -> Any:
    told = answer.json()
    assert told["type"] == "error" and told["error"]["message"]
    return told["error"]["type"]


def code_of(answer: httpx.Response) -> tuple[int, str]:
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    return answer.status_code, error["code"]


def every_route() -> Iterator[tuple[str, str]]:
    """FastAPI's own pages included, and what the gateway answers or relays itself."""
    management = management_app(not_connected)
    for path, methods in management.openapi()["paths"].items():
        yield from ((method.upper(), path.replace("{", "").replace("}", "")) for method in methods)
    yield from (("GET", route.path) for route in management.routes if isinstance(route, Route))
    for path in RELAYED_PATHS:
        yield from ((method, path) for method in ("GET", "POST", "OPTIONS"))
    for path in ("/metrics", "/v1/models", "/v1/models/chat", "/", "/api/cluster/status", "/any", "*"):
        yield from ((method, path) for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"))
    yield from (
        ("GET", "/health?model=chat"),
        ("POST", "/health"),
        ("DELETE", "/ready"),
        ("GET", "/v1/models?model=chat"),
    )


async def test_every_route_wants_a_key() -> None:
    async with (
        Replicas() as replicas,
        listening(
            FrontDoor(Gateway(Parts.plain(replicas), management_app(not_connected)), ring_of(*KEYS)), "127.0.0.1", 0
        ) as port,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http,
    ):
        routes = list(every_route())
        assert len(routes) > 100
        for method, path in routes:
            for headers in ({}, bearer("di-wrong"), {"cookie": f"key={ADMIN}"}, bearer(ADMIN.upper())):
                answer = await http.request(method, path, headers=headers, json={"model": "chat"})
                assert answer.status_code == 401, (method, path, headers)
                assert answer.headers["www-authenticate"] == "Bearer" and answer.headers["x-request-id"]
                if path.startswith("/v1/messages"):
                    assert method == "HEAD" or anthropic_type(answer) == "authentication_error"
                else:
                    assert method == "HEAD" or code_of(answer) == (401, "invalid_api_key")
        assert (await http.get("/health")).status_code == 200
        assert code_of(await http.get("/ready")) == (503, "no_ready_replica")


@pytest.mark.parametrize(
    "target",
    [
        "//v1/deployments",
        "/v1//deployments",
        "/v1/models/../deployments",
        "/v1/models/%2e%2e/deployments",
        "/v1/models/..%2fdeployments",
        "/health/../v1/deployments",
        "/health%2f..%2fv1%2fdeployments",
        "/health;/v1/deployments",
        "/%68ealth/",
        "/v1/deployments#/health",
        "/v1/deployments?/health",
        "http://127.0.0.1/v1/deployments",
        "http://evil.example/v1/deployments?x=/health",
        "*",
    ],
)
async def test_no_spelling_of_a_path_goes_around_the_door(keyed: RunningGateway, target: str) -> None:
    for host in ("127.0.0.1", "x/health", "127.0.0.1/health?", "evil.example"):
        said = await raw(keyed, f"GET {target} HTTP/1.1\r\nhost: {host}\r\n\r\n")
        assert said.startswith((b"HTTP/1.1 401 ", b"HTTP/1.1 400 ")), said


async def test_a_model_s_path_is_a_model_s_name_and_nothing_else(keyed: RunningGateway) -> None:
    said = await raw(
        keyed, f"GET /v1/models/../deployments HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {USER}\r\n\r\n"
    )
    assert said.startswith(b"HTTP/1.1 404 ") and b"model_not_found" in said


async def test_what_is_refused_is_not_read(keyed: RunningGateway) -> None:
    """The answer is there although the body never comes; and nobody is told to go on and send it."""
    head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 1000000\r\n\r\n"
    assert (await raw(keyed, head)).startswith(b"HTTP/1.1 401 ")


async def test_a_header_that_comes_twice_opens_nothing(keyed: RunningGateway) -> None:
    for twice in (f"authorization: Bearer {USER}", f"x-api-key: {USER}"):
        said = await raw(keyed, f"GET /v1/models HTTP/1.1\r\nhost: localhost\r\n{twice}\r\n{twice}\r\n\r\n")
        assert said.startswith(b"HTTP/1.1 400 ") and b"is there twice" in said


@pytest.mark.parametrize(
    "headers",
    [
        bearer(USER),
        {"authorization": f"bearer {USER}"},
        {"x-api-key": USER},
        {"api-key": USER},
        {"authorization": "Basic abc", "x-api-key": USER},
        bearer(ADMIN),
        bearer(ADMIN_TOKEN),
    ],
)
async def test_a_key_opens_the_data_path_and_goes_no_further(
    keyed: RunningGateway, engine: HandMadeEngine, headers: dict[str, str]
) -> None:
    engine.calls.clear()
    more = {"cookie": "a=b", "proxy-authorization": "Basic abc", "api-key": USER, "origin": PAGE, "x-mine": "1"}
    answer = await keyed.http.post(CHAT, json={"model": "chat"}, headers={**more, **headers})
    assert answer.status_code == 200
    seen = dict(engine.calls[0].headers)
    assert seen[b"x-mine"] == b"1" and not {name.encode() for name in {**more, **headers}} & (seen.keys() - {b"x-mine"})
    assert USER.encode() not in b"".join(seen.values())


async def test_openai_s_client_comes_in_with_its_key(keyed: RunningGateway) -> None:
    async with openai.AsyncOpenAI(base_url=f"{keyed.url}/v1", api_key=USER, max_retries=0) as client:
        assert [model.id async for model in client.models.list()] == ["chat", "org/model"]
        with pytest.raises(openai.AuthenticationError, match="opens nothing here"):
            await client.with_options(api_key="di-wrong").models.list()
        with pytest.raises(openai.PermissionDeniedError, match="wants an admin's"):
            await client.get("/metrics", cast_to=httpx.Response)


async def test_a_user_s_key_opens_nothing_else(keyed: RunningGateway, engine: HandMadeEngine) -> None:
    engine.calls.clear()
    for method, path in (
        ("POST", "/v1/deployments"),
        ("POST", "/v1/deployments?model=chat"),
        ("POST", "/reset_prefix_cache?model=chat"),
        ("POST", "/v1/load_lora_adapter"),
        ("GET", "/docs"),
        ("GET", "/metrics"),
    ):
        answer = await keyed.http.request(method, path, json={"model": "chat"}, headers=bearer(USER))
        assert code_of(answer) == (403, "admin_only"), path
        answer = await keyed.http.request(method, path, json={"model": "chat"}, headers=bearer(ADMIN))
        assert answer.status_code == 200, path
    assert [call.path for call in engine.calls] == ["/reset_prefix_cache", "/v1/load_lora_adapter"]


async def test_a_key_that_is_limited_to_models_sees_and_gets_no_other(
    keyed: RunningGateway, engine: HandMadeEngine
) -> None:
    engine.calls.clear()

    async def ask(model: str, query: str = "") -> httpx.Response:
        return await keyed.http.post(CHAT + query, json={"model": model}, headers=bearer(LIMITED))

    assert (await ask("org/model")).status_code == 200
    for refused in (await ask("chat"), await ask("no-such-model"), await ask("chat", "?model=org/model")):
        assert code_of(refused) == (403, "model_not_allowed")
    assert len(engine.calls) == 1
    listed = (await keyed.http.get("/v1/models", headers=bearer(LIMITED))).json()["data"]
    assert [model["id"] for model in listed] == ["org/model"]
    assert code_of(await keyed.http.get("/v1/models/chat", headers=bearer(LIMITED))) == (403, "model_not_allowed")


async def test_before_the_store_was_read_nobody_comes_in() -> None:
    ring = KeyRing(ADMIN_TOKEN)
    async with running_gateway(keys=ring) as gateway:
        for secret in (ADMIN_TOKEN, USER):
            early = await gateway.http.get("/v1/models", headers=bearer(secret))
            assert code_of(early) == (503, "store_unavailable") and early.headers["retry-after"]
        assert code_of(await gateway.http.get("/v1/models")) == (401, "invalid_api_key")
        assert (await gateway.http.get("/health")).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"host": "evil.example", "origin": "http://evil.example"},
    ],
)
async def test_without_keys_foreign_pages_use_nothing(
    open_to_all: RunningGateway, engine: HandMadeEngine, headers: dict[str, str]
) -> None:
    engine.calls.clear()
    for method, path in (
        ("POST", CHAT),
        ("POST", "/v1/deployments"),
        ("GET", "/flush_cache?model=chat"),
        ("OPTIONS", CHAT),
    ):
        asks = {"access-control-request-method": "POST"} if method == "OPTIONS" else {}
        answer = await open_to_all.http.request(method, path, json={"model": "chat"}, headers={**headers, **asks})
        if method != "OPTIONS" or "origin" in headers:
            assert code_of(answer) == (403, "foreign_origin"), (method, path)
        assert "access-control-allow-origin" not in answer.headers
    assert not engine.calls
    for path in ("/v1/models", "/metrics", "/docs", "/health"):
        reading = await open_to_all.http.get(path, headers=headers)
        assert reading.status_code == (403 if "host" in headers else 200)


async def test_without_keys_this_machine_s_own_programs_and_pages_use_everything(open_to_all: RunningGateway) -> None:
    own = {"origin": open_to_all.url, "sec-fetch-site": "same-origin"}
    for headers in ({}, own, {"host": "localhost"}, bearer("whatever")):
        assert (await open_to_all.http.post(CHAT, json={"model": "chat"}, headers=headers)).status_code == 200
        assert (await open_to_all.http.post("/v1/deployments", headers=headers)).status_code == 200


async def test_configured_pages_are_let_in_by_one_rule_for_every_answer(
    keyed: RunningGateway, engine: HandMadeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ask(method: str, path: str, **headers: str) -> httpx.Response:
        headers = {"origin": PAGE, **{name.replace("_", "-"): value for name, value in headers.items()}}
        return await keyed.http.request(method, path, json={"model": "chat", "stream": True}, headers=headers)

    asked: dict[str, Any] = {"access_control_request_method": "POST", "access_control_request_headers": "x-a, x-b"}
    preflight = await ask("OPTIONS", CHAT, **asked)
    assert (preflight.status_code, preflight.headers["access-control-allow-headers"]) == (200, "x-a, x-b")
    assert "POST" in preflight.headers["access-control-allow-methods"]
    foreign = await ask("OPTIONS", CHAT, origin="https://evil.example", **asked)
    assert code_of(foreign) == (403, "foreign_origin") and "access-control-allow-origin" not in foreign.headers

    theirs = ((b"access-control-allow-origin", b"*"), (b"access-control-allow-credentials", b"true"))
    monkeypatch.setattr(engine, "answering", with_headers(theirs))
    key = {"authorization": f"Bearer {ADMIN}"}
    for answer in (
        preflight,
        await ask("POST", CHAT, **key),
        await ask("POST", "/v1/deployments", **key),
        await ask("GET", "/v1/models", **key),
        await ask("GET", "/nowhere", **key),
        await ask("POST", CHAT),  # no key: a page must be able to read why
    ):
        assert answer.headers.get_list("access-control-allow-origin") == [PAGE]
        assert "access-control-allow-credentials" not in answer.headers
        assert "origin" in answer.headers["vary"].lower()
    foreign = await ask("POST", CHAT, **key, origin="https://evil.example")  # it knows a key, and may not read
    assert foreign.status_code == 200 and "access-control-allow-origin" not in foreign.headers


def with_headers(headers: tuple[tuple[bytes, bytes], ...]) -> Any:
    async def answering(stream: int, call: Any) -> AsyncIterator[Any]:
        async for frame in EVENTS(stream, call):
            yield frame._replace(headers=(*frame.headers, *headers)) if isinstance(frame, Head) else frame

    return answering


async def raw(gateway: RunningGateway, request: str) -> bytes:
    """The beginning of the answer to a request that is sent as it stands, and not to its end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(gateway.url.rpartition(":")[2]))
    try:
        writer.write(request.encode())
        async with asyncio.timeout(10):
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
            return head + await reader.readexactly(length)
    finally:
        writer.close()
