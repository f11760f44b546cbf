"""The management API over HTTP and a real etcd."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from deepinfer.agent.engine_log import log_path
from deepinfer.agent.logs_service import serving_logs
from deepinfer.control_plane.management.app import management_app
from deepinfer.fleet import keys
from deepinfer.fleet.errors import StoreUnavailable
from deepinfer.fleet.identity import founded
from deepinfer.fleet.mirror import Mirror
from deepinfer.fleet.resources import Deployment, Phase, ReplicaStatus
from deepinfer.fleet.store import EtcdStore
from tests.etcd_process import EtcdProcess
from tests.fleet_values import placement
from tests.management_parts import error_of, node, serving, write

SIM = {"model": "org/model", "engine": "sim", "name": "chat"}


@pytest.fixture
async def api(store: EtcdStore) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(store) as client:
        yield client


async def test_a_deployment_is_created_shown_changed_and_deleted(api: httpx.AsyncClient) -> None:
    created = await api.post("/v1/deployments", json=SIM)
    assert created.status_code == 201
    view = created.json()
    assert (view["name"], view["generation"], view["replicas"], view["device"]) == ("chat", 1, 1, "auto")
    assert view["status"] == {
        "phase": "progressing",
        "ready": 0,
        "wanted": 1,
        "message": "waiting for the scheduler",
        "outcome": "progressing",
    }
    assert (await api.get("/v1/deployments")).json() == {"object": "list", "data": [view]}
    changed = await api.patch("/v1/deployments/chat", json={"replicas": 2})
    assert (changed.status_code, changed.json()["generation"], changed.json()["replicas"]) == (200, 2, 2)
    gone = await api.delete("/v1/deployments/chat")
    assert (gone.status_code, gone.json()) == (202, {"name": "chat", "deleted": True})
    assert (await api.get("/v1/deployments/chat")).status_code == 404
    assert error_of(await api.delete("/v1/deployments/chat"))["code"] == "deployment_not_found"


async def test_a_name_in_use_is_refused_and_a_put_is_idempotent(api: httpx.AsyncClient) -> None:
    spec = {"model": "m", "engine": "sim"}
    first = await api.put("/v1/deployments/chat", json=spec)
    again = await api.put("/v1/deployments/chat", json=spec)
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json()
    replaced = await api.put("/v1/deployments/chat", json={**spec, "name": "chat", "dtype": "float32"})
    assert (replaced.json()["generation"], replaced.json()["uid"]) == (2, first.json()["uid"])
    unchanged = await api.patch("/v1/deployments/chat", json={"dtype": "float32"})
    assert unchanged.json()["generation"] == 2
    taken = await api.post("/v1/deployments", json={**spec, "name": "chat"})
    assert (taken.status_code, error_of(taken)["code"]) == (409, "deployment_exists")


@pytest.mark.parametrize("content_type", ["application/json", "application/x-www-form-urlencoded", None])
async def test_a_body_is_json_whatever_its_content_type(api: httpx.AsyncClient, content_type: str | None) -> None:
    headers = {"content-type": content_type} if content_type else {}
    body = b'{"model": "org/model", "engine": "sim"}'
    created = await api.post("/v1/deployments", content=body, headers=headers)
    assert (created.status_code, created.json()["name"]) == (201, "model")


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"", 400, "not valid JSON"),
        (b"[]", 400, "must be a JSON object"),
        (b'{"model": NaN}', 400, "not valid JSON"),
        (b'{"model": "m", "engine": "vllm", "engine_args": {"seed": 1e999}}', 400, "1e999 is too large a number"),
        (rb'{"\ud800": 1}', 400, "not valid JSON"),
        (b'{"model": "m", "engine_args": ' + b"[" * 30_000, 400, "not valid JSON"),
        (b'{"model": "m", "engine": "sim", "replica": 1}', 400, "did you mean replicas?"),
        (b'{"model": "m", "backend": "docker"}', 400, 'backend "docker" needs docker_image'),
        (b" " * 70_000, 413, "larger than"),
    ],
)
async def test_a_bad_body_is_answered_in_openais_shape(
    api: httpx.AsyncClient, body: bytes, status: int, words: str
) -> None:
    refused = await api.post("/v1/deployments", content=body)
    assert refused.status_code == status
    assert words in error_of(refused)["message"]


async def test_unknown_paths_methods_and_parameters_have_the_same_shape(api: httpx.AsyncClient) -> None:
    assert error_of(await api.get("/v1/nothing"))["message"].startswith("GET /v1/nothing: Not Found")
    wrong_method = await api.delete("/v1/nodes")
    assert (wrong_method.status_code, wrong_method.headers["allow"]) == (405, "GET")
    all_methods = await api.post("/v1/deployments/chat")
    assert (all_methods.status_code, all_methods.headers["allow"]) == (405, "DELETE, GET, PATCH, PUT")
    wrong_tail = await api.get("/v1/replicas/x/logs", params={"tail": "many"})
    assert (wrong_tail.status_code, error_of(wrong_tail)["param"]) == (400, "tail")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 201),
        ({"host": "localhost:1"}, 201),
        ({"host": "[::1]:8082", "origin": "http://[::1]:8082"}, 201),
        ({"host": "127.0.0.1:8082", "origin": "http://127.0.0.1:8082"}, 201),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"host": "127.0.0.1:8082", "origin": "http://127.0.0.1:9999"}, 403),
        ({"host": "evil.example:8082", "origin": "http://evil.example:8082"}, 403),
        ({"host": "127.0.0.1.evil.example"}, 403),
    ],
)
async def test_web_pages_of_other_origins_change_nothing(
    api: httpx.AsyncClient, headers: dict[str, str], status: int
) -> None:
    assert (await api.post("/v1/deployments", json=SIM, headers=headers)).status_code == status
    assert len((await api.get("/v1/deployments")).json()["data"]) == (status == 201)


async def test_concurrent_changes_are_all_kept(api: httpx.AsyncClient) -> None:
    """Each is a change of one field; a lost update would leave a default behind."""
    await api.post("/v1/deployments", json=SIM)
    changes: list[dict[str, Any]] = [{"replicas": 3}, {"dtype": "float32"}, {"max_model_len": 64}]
    answers = await asyncio.gather(*(api.patch("/v1/deployments/chat", json=change) for change in changes))
    assert {answer.status_code for answer in answers} == {200}
    view = (await api.get("/v1/deployments/chat")).json()
    assert [view[field] for field in ("replicas", "dtype", "max_model_len", "generation")] == [3, "float32", 64, 4]


async def test_only_one_of_many_creations_of_a_name_succeeds(api: httpx.AsyncClient) -> None:
    answers = await asyncio.gather(*(api.post("/v1/deployments", json={**SIM, "replicas": n}) for n in range(5)))
    assert sorted(answer.status_code for answer in answers) == [201, 409, 409, 409, 409]


async def test_changes_of_many_clients_at_once_are_all_made(api: httpx.AsyncClient) -> None:
    await api.post("/v1/deployments", json={**SIM, "name": "chat"})
    changes = [{"replicas": n} for n in range(2, 22)]
    answers = await asyncio.gather(*(api.patch("/v1/deployments/chat", json=change) for change in changes))
    assert [answer.status_code for answer in answers] == [200] * len(changes)
    assert (await api.get("/v1/deployments/chat")).json()["generation"] == 1 + len(changes)


async def test_an_unreadable_deployment_can_be_deleted_but_not_changed(
    api: httpx.AsyncClient, store: EtcdStore
) -> None:
    await store.commit({keys.deployment("chat"): b'{"name": "chat"}'})
    for refused in (
        await api.patch("/v1/deployments/chat", json={"replicas": 2}),
        await api.get("/v1/deployments/chat"),
        await api.get("/v1/deployments/chat/rollout"),
    ):
        assert (refused.status_code, error_of(refused)["code"]) == (409, "deployment_unreadable")
    assert (await api.delete("/v1/deployments/chat")).status_code == 202


async def test_replicas_and_nodes_are_shown_with_what_was_seen_of_them(
    api: httpx.AsyncClient, store: EtcdStore
) -> None:
    here, lost = placement(), placement(replica=1, node="node-2")
    spec = here.spec.model_copy(update={"replicas": 2})
    deployment = Deployment(name="chat", uid="aaaaa", generation=1, created_at="now", spec=spec)
    seen = ReplicaStatus(id=here.id, epoch=1, node="node-1", phase=Phase.READY, endpoint="127.0.0.1:9", pid=7)
    await write(store, deployment, here, lost, node("node-1", "127.0.0.1:1"), seen)
    replicas = (await api.get("/v1/replicas")).json()["data"]
    assert [(r["id"], r["node_alive"], r["phase"], r["pid"]) for r in replicas] == [
        ("chat-aaaaa-0", True, "ready", 7),
        ("chat-aaaaa-1", False, None, None),
    ]
    nodes = (await api.get("/v1/nodes")).json()["data"]
    assert [(n["name"], n["alive"], n["replicas"], [d["id"] for d in n["devices"]]) for n in nodes] == [
        ("node-1", True, ["chat-aaaaa-0"], ["cpu"]),
        ("node-2", False, ["chat-aaaaa-1"], []),
    ]
    status = (await api.get("/v1/deployments/chat")).json()["status"]
    assert (status["phase"], status["ready"], status["wanted"]) == ("progressing", 1, 2)
    assert status["message"] == "chat-aaaaa-1 on node-2: its node is not connected"


async def test_logs_come_from_the_nodes_agent(api: httpx.AsyncClient, store: EtcdStore, tmp_path: Path) -> None:
    here, silent, unknown = placement(), placement(replica=1), placement(replica=2, node="node-2")
    async with serving_logs(tmp_path) as endpoint:
        log_path(tmp_path / here.id).parent.mkdir()
        log_path(tmp_path / here.id).write_text("one\ntwo\nthree\n")
        await write(store, here, silent, unknown, node("node-1", endpoint))
        answer = await api.get(f"/v1/replicas/{here.id}/logs", params={"tail": 2})
        assert (answer.status_code, answer.text) == (200, "two\nthree\n")
        assert answer.headers["content-type"].startswith("text/plain")
        assert (await api.get(f"/v1/replicas/{silent.id}/logs")).status_code == 404
        async with api.stream("GET", f"/v1/replicas/{here.id}/logs", params={"follow": "true"}) as following:
            pieces = following.aiter_text()
            assert await anext(pieces) == "one\ntwo\nthree\n"
            with log_path(tmp_path / here.id).open("a") as log:
                log.write("four\n")
            assert await anext(pieces) == "four\n"
    assert error_of(await api.get("/v1/replicas/none/logs"))["code"] == "replica_not_found"
    not_there = await api.get(f"/v1/replicas/{unknown.id}/logs")
    assert (not_there.status_code, "node-2" in error_of(not_there)["message"]) == (503, True)
    stopped = await api.get(f"/v1/replicas/{here.id}/logs")
    assert (stopped.status_code, "node-1" in error_of(stopped)["message"]) == (503, True)


async def test_without_the_store_the_answer_is_come_back_later(own_etcd: EtcdProcess) -> None:
    async with EtcdStore.connect([own_etcd.endpoint], timeout=0.5) as store:
        own_etcd.kill()
        async with serving(store) as client:
            for answer in (await client.get("/v1/nodes"), await client.post("/v1/deployments", json=SIM)):
                assert answer.status_code == 503 and int(answer.headers["retry-after"]) > 0
                assert error_of(answer)["code"] == "store_unavailable"


async def test_while_the_store_is_away_reads_are_marked_stale_and_writes_refused(own_etcd: EtcdProcess) -> None:
    async with EtcdStore.connect([own_etcd.endpoint], timeout=0.5) as store, serving(store) as client:
        created = await client.post("/v1/deployments", json=SIM)
        assert (created.status_code, created.headers.get("x-deepinfer-stale-since")) == (201, None)
        own_etcd.kill()
        async with asyncio.timeout(10):
            while not (answer := await client.get("/v1/deployments")).headers.get("x-deepinfer-stale-since"):
                pass
        assert [d["name"] for d in answer.json()["data"]] == ["chat"]
        assert datetime.fromisoformat(answer.headers["x-deepinfer-stale-since"]) <= datetime.now(UTC)
        refused = await client.delete("/v1/deployments/chat")
        assert (refused.status_code, error_of(refused)["code"]) == (503, "store_unavailable")
        assert int(refused.headers["retry-after"]) > 0
        await asyncio.to_thread(own_etcd.start)
        async with asyncio.timeout(10):
            while (answer := await client.get("/v1/deployments")).headers.get("x-deepinfer-stale-since"):
                pass
        assert answer.json()["data"][0]["uid"] == created.json()["uid"]
        assert (await client.delete("/v1/deployments/chat")).status_code == 202


async def test_a_wiped_store_takes_no_write_until_a_person_confirms_it(
    api: httpx.AsyncClient, store: EtcdStore
) -> None:
    await api.post("/v1/deployments", json=SIM)
    first = await founded(store)
    async with asyncio.timeout(10):
        while (await api.get("/v1/fleet")).json()["id"] != first.id:
            pass
    trouble = "The store was wiped or exchanged"
    waiting = node("node-1", "127.0.0.1:1").model_copy(update={"fleet": "another", "fleet_trouble": trouble})
    wiped: dict[str, bytes | None] = dict.fromkeys((await store.read(keys.FLEET)).entries)
    await store.commit({**wiped, keys.node("node-1"): waiting.to_json()})
    async with asyncio.timeout(10):
        while not (told := (await api.get("/v1/fleet")).json())["trouble"]:
            pass
    assert told["waiting_nodes"] == {"node-1": trouble}
    listed = await api.get("/v1/deployments")
    assert [d["name"] for d in listed.json()["data"]] == ["chat"] and listed.headers["x-deepinfer-stale-since"]
    refused = await api.post("/v1/deployments", json={**SIM, "name": "other"})
    assert (refused.status_code, error_of(refused)["code"]) == (503, "another_fleet")
    assert "deepinfer fleet confirm" in error_of(refused)["message"]
    assert list((await store.read(keys.FLEET)).entries) == [keys.node("node-1")]
    confirmed = (await api.post("/v1/fleet/confirm")).json()
    assert (confirmed["trouble"], confirmed["id"] != first.id) == ("", True)
    assert set((await founded(store)).succeeds) == {first.id, "another"}
    assert (await api.get("/v1/deployments")).json()["data"] == []
    assert (await api.post("/v1/deployments", json=SIM)).status_code == 201


async def test_before_the_store_is_connected_only_the_documentation_answers() -> None:
    def not_yet() -> Mirror:
        raise StoreUnavailable("serve is not connected to etcd yet.")

    transport = httpx.ASGITransport(management_app(not_yet))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        assert (await client.get("/v1/deployments")).status_code == 503
        assert (await client.get("/docs")).status_code == 200


async def test_the_documentation_needs_no_internet(api: httpx.AsyncClient) -> None:
    page = (await api.get("/docs")).text
    loaded = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(loaded) == 3 and all(address.startswith("/docs/assets/") for address in loaded)
    for address in loaded:
        assert len((await api.get(address)).raise_for_status().content) > 1000


async def test_the_documentation_describes_bodies_and_resolves_every_reference(api: httpx.AsyncClient) -> None:
    document = (await api.get("/openapi.json")).json()
    body = document["paths"]["/v1/deployments"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert {"name", "model", "engine", "replicas"} <= set(body["properties"])
    references = {reference.rpartition("/")[2] for reference in references_in(document)}
    assert references and references <= set(document["components"]["schemas"])


def references_in(part: Any) -> list[str]:
    if isinstance(part, dict):
        own = [part["$ref"]] if "$ref" in part else []
        return own + [found for value in part.values() for found in references_in(value)]
    return [found for value in part for found in references_in(value)] if isinstance(part, list) else []
