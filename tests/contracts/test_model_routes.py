"""The model server's API over HTTP, a real etcd and the scheduler's own passes: load, unload, hot-swap, status."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from deepinfer.fleet import keys
from deepinfer.fleet.identity import founded
from deepinfer.fleet.store import EtcdStore
from tests.management_parts import Passes, error_of, node, serving, write

SIM = {"model": "org/Model", "engine": "sim", "device": "sim:0"}
DRY = {"dry_run": "true"}


@pytest.fixture
async def api(store: EtcdStore) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(store) as client:
        yield client


@pytest.fixture
async def passes(store: EtcdStore) -> Passes:
    await write(store, node("a", accelerators=2))
    return await Passes.of(store)


async def load(api: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    return await api.post("/api/models/load", json={**SIM, **fields})


async def test_a_model_is_loaded_once_and_told_when_it_is_ready(
    api: httpx.AsyncClient, store: EtcdStore, passes: Passes
) -> None:
    before = (await store.read("")).revision
    told = await api.post("/api/models/load", json=SIM, params=DRY)
    assert (told.status_code, told.json()["name"], told.json()["generation"]) == (200, "model", 1)
    assert (await store.read("")).revision == before
    first, again = await load(api), await load(api)
    assert [(a.status_code, a.json()["name"], a.json()["changed"]) for a in (first, again)] == [
        (202, "model", True),
        (202, "model", False),
    ]
    waiting = asyncio.create_task(load(api, wait_seconds=30))
    await passes.settle()
    ready = (await waiting).json()
    assert (waiting.result().status_code, ready["changed"], ready["deployment"]["status"]["phase"]) == (
        200,
        False,
        "ready",
    )
    other = await load(api, replicas=2, dtype="float32")
    assert (other.status_code, error_of(other)["code"]) == (409, "deployment_exists")
    assert "with another replicas, dtype; POST /api/models/hot-swap" in error_of(other)["message"]


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("load", {}, 400, "model is required"),
        ("load", {**SIM, "wait_seconds": -1}, 400, "wait_seconds must be a number of seconds from 0 to 600"),
        ("load", {**SIM, "wait_seconds": True}, 400, "wait_seconds must be"),
        ("load", {**SIM, "replica": 1}, 400, "did you mean replicas?"),
        ("unload", {}, 400, 'must be {"name": ...} or {"model": ...}'),
        ("unload", {"name": "x", "model": "y"}, 400, 'must be {"name": ...}'),
        ("unload", {"name": 3}, 400, "name must be a name"),
        ("unload", {"name": "none"}, 404, "no deployment none"),
        ("unload", {"model": "none"}, 404, "Nothing runs 'none'"),
        ("unload", {"model": "org/Model"}, 400, "one, two run org/Model; name the deployment"),
        ("hot-swap", {"to": "m"}, 400, "from must be a name"),
        ("hot-swap", {"from": "one"}, 400, "model must be a name"),
        ("hot-swap", {"from": "none", "to": "m"}, 404, "Nothing runs 'none'"),
        ("hot-swap", {"from": "one", "to": "m", "model": "n"}, 400, "to and model say the same thing"),
        ("hot-swap", {"from": "one", "to": "m", "name": "x"}, 400, "name cannot be changed from one"),
    ],
)
async def test_what_cannot_be_done_is_refused_in_a_sentence(
    api: httpx.AsyncClient, path: str, body: dict[str, Any], status: int, words: str
) -> None:
    await load(api, name="one")
    await load(api, name="two")
    for how in ({}, DRY):
        refused = await api.post(f"/api/models/{path}", json=body, params=how)
        assert (refused.status_code, words in error_of(refused)["message"]) == (status, True), refused.text


async def test_a_model_is_unloaded_by_its_name_or_its_models(api: httpx.AsyncClient, passes: Passes) -> None:
    await load(api)
    await passes.settle()
    told = await api.post("/api/models/unload", json={"model": "org/Model"}, params=DRY)
    assert (told.status_code, [r["deployment"] for r in told.json()["foreseen"]["stopped"]]) == (200, ["model"])
    for body in ({"model": "org/Model"}, {"model": "model"}, {"name": "model"}):
        await load(api)
        gone = await api.post("/api/models/unload", json=body)
        assert (gone.status_code, gone.json()) == (202, {"name": "model", "dry_run": False, "foreseen": None})
        assert (await api.get("/v1/deployments")).json()["data"] == []


async def test_a_hot_swap_keeps_the_name_and_the_rest_of_the_spec(api: httpx.AsyncClient, passes: Passes) -> None:
    await load(api, model_path="/models/old", replicas=1, device="auto")
    await passes.settle()
    told = (await api.post("/api/models/hot-swap", json={"from": "org/Model", "to": "next/one"}, params=DRY)).json()
    assert (told["generation"], told["spec"]["model"], told["spec"]["model_path"]) == (2, "next/one", None)
    swapped = await api.post("/api/models/hot-swap", json={"from": "model", "model": "next/one", "max_model_len": 64})
    view = swapped.json()["deployment"]
    assert (swapped.status_code, view["name"], view["generation"], view["engine"]) == (202, "model", 2, "sim")
    assert (view["model"], view["model_path"], view["max_model_len"]) == ("next/one", None, 64)
    await passes.settle()
    same = await api.post("/api/models/hot-swap", json={"from": "model", "to": "next/one", "wait_seconds": 5})
    assert (same.status_code, same.json()["changed"]) == (200, False)
    kept = await api.post("/api/models/hot-swap", json={"from": "model", "to": "a", "model_path": "/models/new"})
    assert kept.json()["deployment"]["model_path"] == "/models/new"


async def test_the_cluster_on_one_page(api: httpx.AsyncClient, store: EtcdStore, passes: Passes) -> None:
    identity = await founded(store)
    await load(api)
    await passes.settle()
    await store.commit({keys.LEADER: b'{"name": "host-1", "lease": "1"}'})
    async with asyncio.timeout(10):
        while (told := (await api.get("/api/cluster/status")).json())["leader"] != "host-1":
            pass
    assert (told["fleet"], told["store"]["stale_since"], told["store"]["trouble"]) == (identity.id, None, "")
    (deployment,), (machine,) = told["deployments"], told["nodes"]
    (replica,) = deployment["replicas"]
    assert (deployment["name"], deployment["phase"], deployment["ready"]) == ("model", "ready", 1)
    assert (replica["node"], replica["devices"], replica["phase"]) == ("a", ["sim:0"], "ready")
    assert (machine["name"], machine["state"]) == ("a", "ready")
    assert {d["id"]: d["replicas"] for d in machine["devices"]} == {"cpu": [], "sim:0": [replica["id"]], "sim:1": []}
    await store.commit({keys.LEADER: b"odd"})
    async with asyncio.timeout(10):
        while (await api.get("/api/cluster/status")).json()["leader"] is not None:
            pass
    moved = await api.post("/api/cluster/rebalance", params=DRY)
    assert (moved.status_code, moved.json()["moves"]) == (200, [])
