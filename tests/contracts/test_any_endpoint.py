"""Every endpoint of an engine through the gateway, with no list of them; whose names its engines tell."""

from __future__ import annotations

import json
from typing import Any

import pytest

from deepinfer.engine_shim.served_engine import Receive, Scope, Send
from deepinfer.engine_shim.wire import ShimPhase
from deepinfer.fleet.config import FrontLimits, ServeConfig
from tests.contracts.test_gateway_breakage import GOOD, gateway_over
from tests.fleet_values import deployment, placement, status
from tests.gateway_parts import fleet_of, running_gateway, until
from tests.hand_made_engine import answers, hand_made_engine
from tests.shim_in_process import shim_over

LIMIT = FrontLimits().max_body_bytes
AUDIO = bytes(range(256)) * 4096


@pytest.mark.parametrize(
    "path", ["/pooling", "/classify", "/v2/rerank", "/invocations", "/v1/messages/count_tokens", "/what/comes/next"]
)
async def test_any_post_whose_body_names_a_model_goes_to_its_engine(path: str) -> None:
    async with gateway_over(GOOD) as (gateway, (engine,)):
        answer = await gateway.http.post(path, json={"model": "org/model"})
        assert (answer.status_code, answer.json()) == (200, {"ok": True})
        assert engine.calls[0].path == path


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/responses/resp_1"),
        ("DELETE", "/v1/responses/resp_1"),
        ("POST", "/reset_prefix_cache"),
        ("GET", "/metrics"),
        ("GET", "/health"),
        ("GET", "/v1/models"),
        ("PUT", "/any"),
    ],
)
async def test_with_the_model_in_its_query_any_request_goes_to_the_engine(method: str, path: str) -> None:
    async with gateway_over(GOOD) as (gateway, (engine,)):
        answer = await gateway.http.request(method, f"{path}?a=1&model=org%2Fmodel")
        assert (answer.status_code, answer.json()) == (200, {"ok": True})
        call = engine.calls[0]
        assert (call.method, call.path, call.query, call.body) == (method, path, b"a=1&model=org%2Fmodel", b"")


async def test_bytes_with_the_model_in_the_query_go_on_as_what_they_are() -> None:
    async with gateway_over(GOOD) as (gateway, (engine,)):
        headers = {"content-type": "application/octet-stream"}
        await gateway.http.post("/v1/anything?model=chat", content=AUDIO, headers=headers)
        assert engine.calls[0].body == AUDIO
        assert dict(engine.calls[0].headers)[b"content-type"] == b"application/octet-stream"


@pytest.mark.parametrize("content", [b'{"kv_transfer_params":{}}', b'{"n":NaN}', b"\xff"])
async def test_with_the_model_in_the_query_a_body_is_held_to_the_same(content: bytes) -> None:
    async with gateway_over(GOOD) as (gateway, (engine,)):
        assert (await gateway.http.post("/v1/anything?model=chat", content=content)).status_code == 400
        assert not engine.calls


async def test_where_to_route_to_is_not_the_client_s_to_say() -> None:
    async with gateway_over(GOOD) as (gateway, (engine,)):
        said = {"model": "chat", "api_base": "http://10.0.0.1", "base_url": "http://10.0.0.1"}
        headers = {"X-Data-Parallel-Rank": "3"}
        assert (await gateway.http.post("/v1/completions", json=said, headers=headers)).status_code == 200
        assert engine.calls[0].body == json.dumps(said, separators=(",", ":")).encode()
        assert b"x-data-parallel-rank" not in dict(engine.calls[0].headers)


@pytest.mark.parametrize("size", [1000, 300_000], ids=["small", "large"])
async def test_media_may_be_fetched_from_allowed_domains_only(size: int) -> None:
    async with hand_made_engine() as engine:
        config = ServeConfig(allowed_media_domains=("images.example.com",))
        async with running_gateway(fleet_of(engine.endpoint), config=config) as gateway:
            await until(lambda: gateway.replicas.candidates("chat"))
            for domain, status in (("images.example.com", 200), ("images.example.org", 400)):
                url = f"https://{domain}/{'a' * size}?b=%5C%2e"
                part = {"type": "image_url", "image_url": {"url": url}}
                answer = await gateway.ask(messages=[{"role": "user", "content": [part]}])
                assert answer.status_code == status
            assert answer.json()["error"]["param"] == "messages[0].content[0].image_url"
            assert [b"images.example.com" in call.body for call in engine.calls] == [True]


async def test_a_form_with_a_file_goes_on_untouched() -> None:
    async with gateway_over(GOOD) as (gateway, (engine,)):
        request = gateway.http.build_request(
            "POST",
            "/v1/audio/transcriptions",
            data={"language": "en", "model": "org/model"},
            files={"file": ("model.wav", AUDIO, "audio/wav")},
        )
        body = request.read()
        assert (await gateway.http.send(request)).json() == {"ok": True}
        call = engine.calls[0]
        assert call.body == body
        assert dict(call.headers)[b"content-type"] == request.headers["content-type"].encode()


FORM = {"content-type": "multipart/form-data; boundary=X"}


@pytest.mark.parametrize(
    ("content", "headers", "words"),
    [
        (b'--X\r\nContent-Disposition: form-data; name="a"\r\n\r\nchat\r\n--X--\r\n', FORM, "has no 'model'"),
        (b'--X\r\nContent-Disposition: form-data; name="model"\r\n\r\nchat', FORM, "cut off"),
        (b'--X\r\nContent-Disposition: form-data; name="model"\r\n\r\n\xff\r\n--X--', FORM, "UTF-8"),
        (b"--X\r\n", FORM, "has no 'model'"),
        (b"--X\r\n", {"content-type": "multipart/form-data"}, "boundary"),
        (b"", {}, "?model=NAME"),
    ],
    ids=["no model", "cut off", "no UTF-8", "no part", "no boundary", "nothing"],
)
async def test_a_form_that_names_no_model_is_a_400(content: bytes, headers: dict[str, str], words: str) -> None:
    async with gateway_over(GOOD) as (gateway, (engine,)):
        answer = await gateway.http.post("/v1/audio/transcriptions", content=content, headers=headers)
        assert answer.status_code == 400
        assert words in answer.json()["error"]["message"]
        assert not engine.calls


async def test_a_file_that_is_too_large_is_a_413() -> None:
    async with gateway_over(GOOD) as (gateway, _):
        files = {"file": ("a.wav", b"x" * LIMIT, "audio/wav")}
        answer = await gateway.http.post("/v1/audio/transcriptions", data={"model": "chat"}, files=files)
        assert answer.status_code == 413


async def test_what_an_engine_refuses_comes_back_untouched() -> None:
    refusal = b'{"error":{"message":"no such endpoint","code":404}}'
    async with gateway_over(answers(refusal, status=404)) as (gateway, _):
        answer = await gateway.http.post("/nowhere", json={"model": "chat"})
        assert (answer.status_code, answer.content) == (404, refusal)


async def test_the_management_api_and_foreign_pages_do_not_reach_engines() -> None:
    async with gateway_over(GOOD) as (gateway, (engine,)):
        assert (await gateway.http.post("/v1/deployments?model=chat")).json() == {"seen": "by the management API"}
        assert (await gateway.http.get("/nothing")).status_code == 404
        foreign = {"origin": "http://elsewhere.example"}
        answer = await gateway.http.post("/reset_prefix_cache?model=chat", headers=foreign)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "foreign_origin")
        assert not engine.calls


async def ok(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})


async def test_names_that_an_engine_serves_besides_come_and_go_while_it_runs() -> None:
    async with shim_over(ok) as shim, running_gateway(fleet_of(shim.status.endpoint)) as gateway:

        async def listed() -> dict[str, Any]:
            return {m["id"]: m.get("parent") for m in (await gateway.http.get("/v1/models")).json()["data"]}

        await until(lambda: gateway.replicas.candidates("chat"))
        assert await listed() == {"chat": None, "org/model": None}
        shim.names = ("sql-adapter",)
        shim.status.touch()
        await until(lambda: gateway.replicas.candidates("sql-adapter"))
        assert await listed() == {"chat": None, "org/model": None, "sql-adapter": "chat"}
        assert (await gateway.ask(model="sql-adapter")).text == "ok"
        shim.names = ()
        shim.status.touch()
        await until(lambda: not gateway.replicas.knows("sql-adapter"))
        assert (await gateway.ask(model="sql-adapter")).status_code == 404


async def test_an_adapter_of_an_engine_that_is_away_is_a_503_and_not_a_404() -> None:
    async with gateway_over(GOOD) as (gateway, (engine,)):
        await engine.becomes(ShimPhase.READY, names=("chat", "sql-adapter"))
        await until(lambda: gateway.replicas.candidates("sql-adapter"))
        await engine.stop()
        await until(lambda: not gateway.replicas.candidates("chat"))
        answer = await gateway.ask(model="sql-adapter")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_ready_replica")


async def test_an_engine_cannot_take_a_name_that_is_another_deployment_s() -> None:
    async with gateway_over(GOOD) as (gateway, (engine,)):
        fleet = fleet_of(engine.endpoint)
        both = fleet.__class__(
            deployments=(*fleet.deployments, deployment("other", "other-model")),
            placements=(*fleet.placements, placement("other")),
            statuses=(*fleet.statuses, status("other-aaaaa-0")),
        )
        gateway.replicas.update(both)
        await engine.becomes(ShimPhase.READY, names=("chat", "other", "other-model", "mine"))
        await until(lambda: gateway.replicas.candidates("mine"))
        assert not gateway.replicas.candidates("other")
        assert not gateway.replicas.candidates("other-model")
