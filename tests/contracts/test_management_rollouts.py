"""Dry runs, explanations, revisions and rollouts over HTTP, a real etcd, and the scheduler's own passes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from deepinfer.control_plane.management.history import KEPT
from deepinfer.fleet import keys
from deepinfer.fleet.resources import Intent
from deepinfer.fleet.store import EtcdStore
from tests.management_parts import Passes, error_of, node, serving, write

SIM = {"model": "m", "engine": "sim", "name": "chat", "replicas": 2}
CHAT = "/v1/deployments/chat"


@pytest.fixture
async def api(store: EtcdStore) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(store) as client:
        yield client


@pytest.fixture
async def passes(store: EtcdStore) -> Passes:
    await write(store, node("a", accelerators=1), node("b", accelerators=1))
    return await Passes.of(store)


def places(replicas: list[dict[str, Any]], deployment: str = "chat") -> list[tuple[str, list[str]]]:
    return sorted((r["node"], r["devices"]) for r in replicas if r["deployment"] == deployment)


async def placed(passes: Passes, deployment: str = "chat") -> list[tuple[str, list[str]]]:
    fleet = await passes.settle()
    serving = (p for p in fleet.placements if p.deployment == deployment and p.intent is Intent.SERVE)
    return sorted((p.node, list(p.devices)) for p in serving)


async def test_a_dry_run_tells_what_then_happens_and_writes_nothing(
    api: httpx.AsyncClient, store: EtcdStore, passes: Passes
) -> None:
    before = (await store.read("")).revision
    told = await api.post("/v1/deployments", json=SIM, params={"dry_run": "true"})
    assert (told.status_code, (await store.read("")).revision) == (200, before)
    view = told.json()
    assert (view["dry_run"], view["name"], view["generation"], view["changes"]) == (True, "chat", 1, True)
    assert view["spec"]["replicas"] == 2 and [r["id"] for r in view["foreseen"]["started"]] == [None, None]
    assert places(view["foreseen"]["started"]) == [("a", ["sim:0"]), ("b", ["sim:0"])]
    assert [(r["node"], r["why"].partition(":")[0]) for r in view["explanation"]["replicas"]] == [
        ("a", "starts"),
        ("b", "starts"),
    ]
    assert (await api.get(CHAT)).status_code == 404
    await api.post("/v1/deployments", json=SIM)
    assert await placed(passes) == places(view["foreseen"]["started"])
    again = (await api.put(CHAT, json=SIM, params={"dry_run": "true"})).json()
    assert (again["changes"], again["generation"], len(again["foreseen"]["kept"])) == (False, 1, 2)
    scaled = (await api.patch(CHAT, json={"replicas": 3}, params={"dry_run": "true"})).json()["foreseen"]
    assert (len(scaled["kept"]), places(scaled["started"]), scaled["stopped"]) == (2, [("a", ["cpu"])], [])


async def test_a_dry_run_tells_what_stops_and_what_is_refused_elsewhere(api: httpx.AsyncClient, passes: Passes) -> None:
    await api.post("/v1/deployments", json={**SIM, "device": "sim:0"})
    await passes.settle()
    important = {**SIM, "name": "important", "replicas": 1, "device": "sim:0", "priority": 5}
    foreseen = (await api.post("/v1/deployments", json=important, params={"dry_run": "true"})).json()["foreseen"]
    assert [(r["deployment"], r["why"]) for r in foreseen["stopped"]] == [
        ("chat", "important of priority 5 takes its devices")
    ]
    assert [(r["deployment"], r["missing"]) for r in foreseen["refused"]] == [("chat", 1)]
    await api.post("/v1/deployments", json=important)
    assert await placed(passes, "important") == places(foreseen["started"], "important")
    unimportant = {**important, "name": "unimportant", "priority": -5}
    foreseen = (await api.post("/v1/deployments", json=unimportant, params={"dry_run": "true"})).json()["foreseen"]
    assert (foreseen["started"], foreseen["stopped"]) == ([], [])
    assert [(r["deployment"], sorted(r["reasons"])) for r in foreseen["refused"]] == [("unimportant", ["a", "b"])]


async def test_several_deployments_are_foreseen_together_and_written_together(
    api: httpx.AsyncClient, store: EtcdStore, passes: Passes
) -> None:
    """Each by itself would find a place for all its replicas."""
    lesser = {**SIM, "device": "sim:0"}
    greater = {**lesser, "name": "greater", "replicas": 1, "priority": 5}
    both = {"deployments": [lesser, greater]}
    told = (await api.put("/v1/deployments", json=both, params={"dry_run": "true"})).json()
    assert [(d["name"], d["generation"], d["changes"]) for d in told["data"]] == [
        ("chat", 1, True),
        ("greater", 1, True),
    ]
    (refused,) = told["foreseen"]["refused"]
    assert (refused["deployment"], refused["missing"]) == ("chat", 1)
    assert refused["reasons"]["a"] == "device sim:0 is taken by greater-0", "an id that there will not be"
    assert (await api.get("/v1/deployments")).json()["data"] == []
    written = await api.put("/v1/deployments", json=both)
    assert [d["name"] for d in written.json()["data"]] == ["chat", "greater"]
    records = (await store.read(keys.DEPLOYMENTS)).entries.values()
    assert len({record.mod_revision for record in records}) == 1
    for name in ("chat", "greater"):
        assert await placed(passes, name) == places(told["foreseen"]["started"], name)
    again = (await api.put("/v1/deployments", json=both, params={"dry_run": "true"})).json()
    assert [d["changes"] for d in again["data"]] == [False, False]


async def test_of_several_deployments_none_is_written_if_one_is_refused(
    api: httpx.AsyncClient, store: EtcdStore
) -> None:
    wrong = await api.put("/v1/deployments", json={"deployments": [SIM, {**SIM, "name": "b", "engine": "simm"}]})
    assert (wrong.status_code, error_of(wrong)["param"]) == (400, "deployments[1].engine")
    assert error_of(wrong)["message"].startswith("b: engine must be ")
    await store.commit({keys.deployment("damaged"): b"{"})
    unreadable = await api.put("/v1/deployments", json={"deployments": [SIM, {**SIM, "name": "damaged"}]})
    assert (unreadable.status_code, error_of(unreadable)["code"]) == (409, "deployment_unreadable")
    assert list((await store.read(keys.DEPLOYMENTS)).entries) == [keys.deployment("damaged")]


async def test_more_deployments_than_a_transaction_takes_are_all_written(
    api: httpx.AsyncClient, store: EtcdStore
) -> None:
    many = {"deployments": [{**SIM, "name": f"chat-{number}"} for number in range(120)]}
    assert len((await api.put("/v1/deployments", json=many)).raise_for_status().json()["data"]) == 120
    for prefix in (keys.DEPLOYMENTS, keys.REVISIONS):
        assert len((await store.read(prefix)).entries) == 120


async def test_a_dry_run_counts_on_an_engine_that_answers_from_a_lost_node(store: EtcdStore, passes: Passes) -> None:
    answering: set[tuple[str, int]] = set()
    async with serving(store, lambda: frozenset(answering)) as api:
        await api.post("/v1/deployments", json=SIM)
        answering |= {(p.id, p.epoch) for p in (await passes.settle()).placements}
        await store.commit({keys.node("b"): None})
        await api.post("/v1/nodes/b/lost")
        leader = await Passes.of(store, lambda: frozenset(answering))
        assert ("b", Intent.SERVE) in [(p.node, p.intent) for p in (await leader.settle()).placements]
        dry_run = (await api.patch(CHAT, json={"replicas": 3}, params={"dry_run": "true"})).json()
        foreseen = dry_run["foreseen"]
        assert ([r["node"] for r in foreseen["kept"]], foreseen["stopped"]) == (["a", "b"], [])
        assert {r["node"]: r["why"] for r in dry_run["explanation"]["replicas"]}["b"].startswith("stays: ")
        await api.patch(CHAT, json={"replicas": 3})
        assert await placed(leader, "chat") == sorted(places(foreseen["kept"]) + places(foreseen["started"]))


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("POST", "/v1/deployments", SIM, 409, "deployment_exists"),
        ("PATCH", "/v1/deployments/none", {}, 404, "deployment_not_found"),
        ("POST", "/v1/deployments/none/rollout/undo", {}, 404, "deployment_not_found"),
        ("POST", f"{CHAT}/rollout/undo", {}, 409, "nothing_to_undo"),
        ("POST", f"{CHAT}/rollout/undo", {"to": 7}, 404, "revision_not_found"),
        ("POST", f"{CHAT}/rollout/undo", {"to": True}, 400, None),
        ("POST", f"{CHAT}/rollout/undo", {"too": 1}, 400, None),
        ("PUT", CHAT, {"model": "m", "engine": "simm"}, 400, None),
        ("GET", "/v1/deployments/none/rollout", None, 404, "deployment_not_found"),
        ("GET", "/v1/deployments/none/revisions", None, 404, "deployment_not_found"),
        ("GET", "/v1/deployments/none/explain", None, 404, "deployment_not_found"),
    ],
)
@pytest.mark.parametrize("dry", ["true", "false"])
async def test_a_dry_run_fails_as_the_real_thing_does(
    api: httpx.AsyncClient, method: str, path: str, body: Any, status: int, code: str | None, dry: str
) -> None:
    await api.post("/v1/deployments", json=SIM)
    answer = await api.request(method, path, json=body, params={"dry_run": dry})
    assert (answer.status_code, error_of(answer)["code"]) == (status, code)


async def test_every_generation_is_a_revision_and_goes_with_its_deployment(
    api: httpx.AsyncClient, store: EtcdStore
) -> None:
    await api.post("/v1/deployments", json=SIM)
    for length in range(100, 100 + KEPT + 3):
        await api.patch(CHAT, json={"max_model_len": length})
    listed = (await api.get(f"{CHAT}/revisions")).json()["data"]
    assert [r["generation"] for r in listed] == list(range(5, KEPT + 5))
    assert [r["is_newest"] for r in listed] == [False] * (KEPT - 1) + [True]
    assert listed[-1]["cause"] == "changed max_model_len" and listed[-1]["spec"]["max_model_len"] == 112
    await api.delete(CHAT)
    assert not (await store.read(keys.REVISIONS)).entries
    await api.post("/v1/deployments", json=SIM)
    listed = (await api.get(f"{CHAT}/revisions")).json()["data"]
    assert [(r["generation"], r["cause"]) for r in listed] == [(1, "created")]


async def test_the_good_revision_is_kept_however_old(api: httpx.AsyncClient, store: EtcdStore, passes: Passes) -> None:
    await api.post("/v1/deployments", json=SIM)
    await passes.settle()
    for length in range(100, 100 + KEPT + 3):
        await api.patch(CHAT, json={"max_model_len": length})
    listed = (await api.get(f"{CHAT}/revisions")).json()["data"]
    assert [r["generation"] for r in listed] == [1, *range(5, KEPT + 5)]
    assert [r["generation"] for r in listed if r["is_good"]] == [1]


async def test_undo_goes_back_to_what_differed_with_as_many_replicas_as_now(api: httpx.AsyncClient) -> None:
    await api.post("/v1/deployments", json=SIM)
    await api.patch(CHAT, json={"max_model_len": 64})
    await api.patch(CHAT, json={"replicas": 5})
    told = (await api.post(f"{CHAT}/rollout/undo", params={"dry_run": "true"})).json()
    assert (told["generation"], told["spec"]["max_model_len"]) == (4, None)
    undone = (await api.post(f"{CHAT}/rollout/undo")).json()
    assert (undone["generation"], undone["max_model_len"], undone["replicas"]) == (4, None, 5)
    forward = (await api.post(f"{CHAT}/rollout/undo", json={"to": 2})).json()
    assert (forward["generation"], forward["max_model_len"], forward["replicas"]) == (5, 64, 5)
    same = (await api.post(f"{CHAT}/rollout/undo", json={"to": 5})).json()
    assert same["generation"] == 5


async def test_a_generation_that_fails_is_told_as_rolled_back_and_undo_accepts_that(
    api: httpx.AsyncClient, passes: Passes
) -> None:
    await api.post("/v1/deployments", json=SIM)
    await passes.settle()
    good = (await api.get(f"{CHAT}/rollout")).json()
    assert (good["outcome"], good["good_generation"], good["updated"], good["ready"]) == ("complete", 1, 2, 2)
    await api.patch(CHAT, json={"max_model_len": 64})
    await passes.scheduler.converge()
    status = (await api.get(CHAT)).json()["status"]
    assert (status["phase"], status["outcome"]) == ("progressing", "progressing")
    await passes.fail("chat", "no such length")
    await passes.settle()
    view = (await api.get(CHAT)).json()
    assert (view["status"]["phase"], view["status"]["outcome"], view["max_model_len"]) == ("ready", "rolled-back", 64)
    assert "generation 2 was rolled back: " in view["status"]["message"]
    assert "no such length; generation 1 runs" in view["status"]["message"]
    assert {c["aspect"]: c["reason"] for c in view["conditions"]}["Accepted"] == "RolledBack"
    rollout = (await api.get(f"{CHAT}/rollout")).json()
    assert (rollout["generation"], rollout["good_generation"], rollout["updated"], rollout["old"]) == (2, 1, 0, 2)
    assert "no such length" in rollout["reason"]
    undone = (await api.post(f"{CHAT}/rollout/undo")).json()
    assert (undone["generation"], undone["max_model_len"]) == (3, None)
    before = await passes.fleet()
    assert (await passes.settle()).placements == before.placements  # what runs is what is asked for
    assert (await api.get(CHAT)).json()["status"]["outcome"] == "complete"


async def test_what_has_no_room_leaves_the_old_ones_serving_and_says_so(
    api: httpx.AsyncClient, store: EtcdStore, passes: Passes
) -> None:
    await api.post("/v1/deployments", json=SIM)
    await passes.settle()
    await api.patch(CHAT, json={"device": "sim:7"})
    await passes.settle()
    status = (await api.get(CHAT)).json()["status"]
    assert status["phase"] == "refused"
    assert status["message"].startswith("the old replicas serve on, 2 new without a place: a has no device sim:7")


async def test_what_waits_for_others_to_drain_is_not_refused(
    api: httpx.AsyncClient, store: EtcdStore, passes: Passes
) -> None:
    await api.post("/v1/deployments", json={**SIM, "device": "sim:0"})
    await passes.settle()
    await api.post("/v1/deployments", json={**SIM, "name": "next", "replicas": 1, "device": "sim:0", "priority": 1})
    await passes.scheduler.converge()
    status = (await api.get("/v1/deployments/next")).json()["status"]
    assert (status["phase"], status["message"].partition("waits for ")[2][-13:]) == ("progressing", "to drain on a")


async def test_an_explanation_names_every_device(api: httpx.AsyncClient, passes: Passes) -> None:
    await api.post("/v1/deployments", json={**SIM, "replicas": 1, "device": "sim:0"})
    await passes.settle()
    told = (await api.get(f"{CHAT}/explain")).json()
    assert [(r["node"], r["devices"], r["why"].partition(":")[0]) for r in told["replicas"]] == [
        ("a", ["sim:0"], "stays")
    ]
    assert [(n["node"], n["fits"], n["rank"]) for n in told["nodes"]] == [("b", True, 1), ("a", False, None)]
    assert {d["device"]: d["free"] for n in told["nodes"] for d in n["device_verdicts"] if n["node"] == "b"} == {
        "cpu": False,
        "sim:0": True,
    }
    assert (told["missing"], told["waits_for"]) == (0, "")


async def test_an_explanation_of_what_cannot_be_read_says_that(api: httpx.AsyncClient, store: EtcdStore) -> None:
    await api.post("/v1/deployments", json=SIM)
    await store.commit({keys.rollout("chat"): b"{}"})
    dry_run = await api.patch(CHAT, json={"replicas": 3}, params={"dry_run": "true"})
    for told in (await api.get(f"{CHAT}/explain"), dry_run):
        assert (told.status_code, error_of(told)["code"]) == (409, "deployment_unreadable")
