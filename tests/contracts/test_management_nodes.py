"""What people decide about nodes, moves and events, over HTTP, a real etcd, and the scheduler's own passes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from deepinfer.control_plane.scheduler.event_log import EventLog
from deepinfer.control_plane.scheduler.happenings import Happening
from deepinfer.fleet import keys
from deepinfer.fleet.resources import Intent
from deepinfer.fleet.store import EtcdStore
from tests.etcd_process import EtcdProcess
from tests.management_parts import Passes, error_of, node, serving, write

SIM = {"model": "m", "engine": "sim", "name": "chat", "device": "sim:0"}


@pytest.fixture
async def api(store: EtcdStore) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(store) as client:
        yield client


@pytest.fixture
async def passes(store: EtcdStore) -> Passes:
    await write(store, node("a", accelerators=1), node("b", accelerators=1))
    return await Passes.of(store)


async def states(api: httpx.AsyncClient) -> dict[str, str]:
    return {view["name"]: view["state"] for view in (await api.get("/v1/nodes")).json()["data"]}


async def decide(api: httpx.AsyncClient, name: str, decision: str) -> Any:
    return (await api.post(f"/v1/nodes/{name}/{decision}")).raise_for_status().json()


async def where(passes: Passes) -> list[str]:
    fleet = await passes.settle()
    return [placement.node for placement in fleet.placements if placement.intent is Intent.SERVE]


async def test_a_cordoned_node_takes_nothing_new_and_a_drained_one_is_emptied(
    api: httpx.AsyncClient, store: EtcdStore, passes: Passes
) -> None:
    assert (await decide(api, "a", "cordon"))["state"] == "cordoned"
    await api.post("/v1/deployments", json=SIM)
    assert await where(passes) == ["b"]
    assert (await decide(api, "a", "uncordon"))["state"] == "ready"
    assert not (await store.read(keys.NODE_SETTINGS)).entries  # nothing is left of a decision that was taken back
    assert await where(passes) == ["b"]
    assert (await decide(api, "b", "drain"))["state"] == "draining"
    assert await where(passes) == ["a"]
    assert (await api.get("/v1/nodes/b")).json()["replicas"] == []
    assert (await api.get("/v1/deployments/chat")).json()["status"]["phase"] == "ready"


async def test_a_persons_word_replaces_a_decision_that_cannot_be_read(
    api: httpx.AsyncClient, store: EtcdStore, passes: Passes
) -> None:
    await store.commit({keys.node_settings("a"): b'{"node": "a", "cordoned": "yes and no"}'})
    await decide(api, "a", "uncordon")
    assert not (await store.read(keys.NODE_SETTINGS)).entries
    assert not (await passes.fleet()).unreadable


async def test_states_labels_and_pressure_are_shown(api: httpx.AsyncClient, store: EtcdStore) -> None:
    tight = node("tight").model_copy(update={"pressure": ("2 GiB of disk left",), "labels": {"zone": "z"}})
    await write(store, tight, node("going").model_copy(update={"leaving": True}))
    assert await states(api) == {"going": "leaving", "tight": "under-pressure"}
    shown = (await api.get("/v1/nodes/tight")).json()
    assert (shown["pressure"], shown["labels"], shown["absence"]) == (["2 GiB of disk left"], {"zone": "z"}, None)


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", f"/v1/nodes/nodo/{what}") for what in ("cordon", "uncordon", "drain", "lost")]
    + [("DELETE", "/v1/nodes/nodo"), ("GET", "/v1/nodes/nodo")],
)
async def test_a_node_nobody_knows_is_404_with_those_there_are(
    api: httpx.AsyncClient, passes: Passes, method: str, path: str
) -> None:
    answer = await api.request(method, path)
    assert (answer.status_code, error_of(answer)["code"]) == (404, "node_not_found")
    assert error_of(answer)["message"] == "There is no node 'nodo'; the nodes are: a, b."


async def test_a_node_is_lost_by_a_persons_word_fenced_then_forgotten(
    api: httpx.AsyncClient, store: EtcdStore, passes: Passes
) -> None:
    await decide(api, "b", "cordon")
    await api.post("/v1/deployments", json=SIM)
    assert await where(passes) == ["a"]
    await decide(api, "b", "uncordon")
    for refused in (await api.post("/v1/nodes/a/lost"), await api.delete("/v1/nodes/a")):
        assert (refused.status_code, error_of(refused)["code"]) == (409, "node_in_use")
        assert "is connected" in error_of(refused)["message"]
    await store.commit({keys.node("a"): None})
    await passes.settle()
    away = (await api.get("/v1/nodes/a")).json()
    assert (away["state"], away["absence"]["held"], away["alive"]) == ("away", "", False)
    refused = await api.delete("/v1/nodes/a")
    assert (refused.status_code, "may come back" in error_of(refused)["message"]) == (409, True)
    assert (await decide(api, "a", "lost"))["state"] == "lost"
    refused = await api.delete("/v1/nodes/a")
    assert (refused.status_code, "chat-" in error_of(refused)["message"]) == (409, True)
    fleet = await passes.settle()
    assert sorted((p.node, p.intent) for p in fleet.placements) == [("a", Intent.DRAIN), ("b", Intent.SERVE)]
    shown = {r["node"]: r for r in (await api.get("/v1/replicas")).json()["data"]}["a"]
    assert (shown["intent"], shown["why"], shown["node_alive"], shown["phase"]) == (
        "drain",
        "node a is lost",
        False,
        "ready",
    )
    assert (await api.delete("/v1/nodes/a")).json() == {"name": "a", "forgotten": True}
    fleet = await passes.settle()
    assert [p.node for p in fleet.placements] == ["b"]
    assert (fleet.node_settings, fleet.absences, await states(api)) == ((), (), {"b": "ready"})


async def test_a_lost_node_that_returns_takes_nothing_until_it_is_uncordoned(
    api: httpx.AsyncClient, store: EtcdStore, passes: Passes
) -> None:
    await decide(api, "b", "cordon")
    await store.commit({keys.node("b"): None})
    await decide(api, "b", "lost")
    await write(store, node("b", accelerators=1))
    assert await states(api) == {"a": "ready", "b": "cordoned"}
    await api.post("/v1/deployments", json={**SIM, "replicas": 2})
    assert await where(passes) == ["a"]
    await decide(api, "b", "uncordon")
    assert await where(passes) == ["a", "b"]


async def test_a_rebalance_moves_what_has_a_better_place(
    api: httpx.AsyncClient, store: EtcdStore, passes: Passes
) -> None:
    await decide(api, "b", "cordon")
    await api.post("/v1/deployments", json={**SIM, "device": "cpu", "replicas": 2})
    assert await where(passes) == ["a", "a"]
    await decide(api, "b", "uncordon")
    told = (await api.post("/v1/rebalance", params={"dry_run": "true"})).json()
    assert [(r["node"], r["devices"]) for r in told["moves"]] == [("a", ["cpu"])]
    assert [(r["node"], r["devices"]) for r in told["foreseen"]["started"]] == [("b", ["cpu"])]
    assert [r["why"] for r in told["foreseen"]["stopped"]] == ["a better place was asked for"]
    assert not (await store.read(keys.MOVES)).entries
    assert (await api.post("/v1/rebalance")).json() == {**told, "dry_run": False}
    assert await where(passes) == ["a", "b"]
    again = (await api.post("/v1/rebalance")).json()
    assert again["moves"] == [] and not (await store.read(keys.MOVES)).entries


async def test_events_are_told_in_order_and_of_one_object(api: httpx.AsyncClient, store: EtcdStore) -> None:
    log = EventLog(store)
    await log.write([Happening("deployments/chat", "Placed", "1"), Happening("nodes/a", "Away", "2")])
    await log.write([Happening("deployments/chat", "Ready", "3"), Happening("deployments/chat2", "Placed", "4")])
    await store.commit({keys.event("deployments/chat", "9"): b"{}"})
    told = (await api.get("/v1/events")).json()["data"]
    assert [(e["about"], e["reason"], e["message"]) for e in told][:2] == [
        ("deployments/chat", "Placed", "1"),
        ("nodes/a", "Away", "2"),
    ]
    assert [e["message"] for e in told] == ["1", "2", "3", "4"]
    of_one = (await api.get("/v1/events", params={"about": "deployments/chat"})).json()["data"]
    assert [e["message"] for e in of_one] == ["1", "3"]
    newest = (await api.get("/v1/events", params={"limit": 1})).json()["data"]
    assert [e["message"] for e in newest] == ["4"]
    wrong = await api.get("/v1/events", params={"about": "../x"})
    assert (wrong.status_code, error_of(wrong)["param"]) == (400, "about")


async def test_while_the_store_is_away_what_is_known_is_told_as_stale(own_etcd: EtcdProcess) -> None:
    async with EtcdStore.connect([own_etcd.endpoint], timeout=0.5) as store, serving(store) as api:
        await write(store, node("a", accelerators=1))
        await api.post("/v1/deployments", json=SIM)
        own_etcd.kill()
        async with asyncio.timeout(10):
            while not (await api.get("/v1/nodes")).headers.get("x-deepinfer-stale-since"):
                pass
        for path in ("explain", "rollout", "revisions"):
            known = await api.get(f"/v1/deployments/chat/{path}")
            assert (known.status_code, bool(known.headers["x-deepinfer-stale-since"])) == (200, True)
        dry = await api.put("/v1/deployments/chat", json={**SIM, "replicas": 3}, params={"dry_run": "true"})
        assert (dry.status_code, len(dry.json()["foreseen"]["started"])) == (200, 1)
        assert (await api.post("/v1/rebalance", params={"dry_run": "true"})).status_code == 200
        writes = [("POST", f"/v1/nodes/a/{what}") for what in ("cordon", "uncordon", "drain")]
        writes += [("POST", "/v1/deployments/chat/rollout/undo"), ("POST", "/v1/rebalance"), ("DELETE", "/v1/nodes/a")]
        for method, path in [*writes, ("GET", "/v1/events")]:
            refused = await api.request(method, path)
            assert (refused.status_code, error_of(refused)["code"]) == (503, "store_unavailable"), path
