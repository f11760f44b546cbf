"""Aliases: written through the management API over a real etcd, and used through the gateway over real sockets."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from deepinfer.fleet import keys
from deepinfer.fleet.alias import Alias, AliasTarget
from deepinfer.fleet.snapshot import Snapshot
from deepinfer.fleet.store import EtcdStore
from tests.fleet_values import deployment, placement, status
from tests.gateway_parts import running_gateway, until
from tests.hand_made_engine import HandMadeEngine, answers, hand_made_engine
from tests.management_parts import error_of, serving

SIM = {"model": "org/model", "engine": "sim"}


@pytest.fixture
async def api(store: EtcdStore) -> AsyncIterator[httpx.AsyncClient]:
    """With the deployments "a" and "b"."""
    async with serving(store) as client:
        for name in "ab":
            await client.put(f"/v1/deployments/{name}", json=SIM)
        yield client


def to(**weights: int) -> dict[str, Any]:
    return {"targets": [{"deployment": name, "weight": weight} for name, weight in weights.items()]}


@pytest.mark.parametrize("name", ["gpt-4o", "org/model", "a:b/C_d/e.1"])
async def test_an_alias_is_set_shown_changed_and_removed(api: httpx.AsyncClient, name: str) -> None:
    created = await api.put(f"/v1/aliases/{name}", json={"targets": [{"deployment": "a"}]})
    assert (created.status_code, created.json()["targets"]) == (201, [{"deployment": "a", "weight": 1, "exists": True}])
    changed = await api.put(f"/v1/aliases/{name.replace('/', '%2F')}", json=to(a=9, b=1))
    assert (changed.status_code, changed.json()["created_at"]) == (200, created.json()["created_at"])
    assert (await api.get("/v1/aliases")).json()["data"] == [changed.json()]
    assert (await api.get(f"/v1/aliases/{name}")).json() == changed.json()
    assert (await api.delete("/v1/deployments/b")).status_code == 202
    shown = (await api.get(f"/v1/aliases/{name}")).json()
    assert ([t["exists"] for t in shown["targets"]], shown["message"]) == (
        [True, False],
        "it points at b, which is not deployed",
    )
    assert (await api.delete(f"/v1/aliases/{name}")).json() == {"name": name, "removed": True}
    for gone in (await api.get(f"/v1/aliases/{name}"), await api.delete(f"/v1/aliases/{name}")):
        assert (gone.status_code, error_of(gone)["code"]) == (404, "alias_not_found")


@pytest.mark.parametrize(
    ("name", "body", "status", "words"),
    [
        ("x", to(a=1, none=1), 404, "There is no deployment none for the alias x"),
        ("b", to(a=1), 409, "b is a deployment; an alias needs a name of its own"),
        ("x", {}, 400, "targets must be a list of 1 to 16 objects"),
        ("x", to(), 400, "targets must be a list"),
        ("x", to(a=0), 400, "a weight from 1 to 10000"),
        ("x", {"targets": [{"deployment": "a", "weight": 1.5}]}, 400, "targets must be"),
        ("x", {"targets": [{"deployment": "a"}] * 2}, 400, "a is there twice"),
        ("x", {"targets": [{"deployment": "a", "wieght": 2}]}, 400, 'Unknown field "wieght"'),
        ("x", {**to(a=1), "name": "y"}, 400, 'Unknown field "name"'),
        ("x//y", to(a=1), 400, "name must be at most 128"),
        ("x" * 129, to(a=1), 400, "name must be at most 128"),
        ("", to(a=1), 400, "name must be at most 128"),
    ],
)
async def test_a_wrong_alias_is_refused_in_a_sentence(
    api: httpx.AsyncClient, name: str, body: dict[str, Any], status: int, words: str
) -> None:
    refused = await api.put(f"/v1/aliases/{name}", json=body)
    assert (refused.status_code, words in error_of(refused)["message"]) == (status, True), refused.text
    assert (await api.get("/v1/aliases")).json()["data"] == []


async def test_a_deployment_never_gets_an_aliass_name(api: httpx.AsyncClient) -> None:
    await api.put("/v1/aliases/x", json=to(a=1))
    for how in ({}, {"dry_run": "true"}):
        for refused in (
            await api.post("/v1/deployments", json={**SIM, "name": "x"}, params=how),
            await api.put("/v1/deployments/x", json=SIM, params=how),
            await api.put("/v1/deployments", json={"deployments": [{**SIM, "name": "x"}]}, params=how),
        ):
            assert (refused.status_code, error_of(refused)["code"]) == (409, "alias_exists")
    alias, other = api.put("/v1/aliases/y", json=to(a=1)), api.put("/v1/deployments/y", json=SIM)
    assert sorted(answer.status_code for answer in await asyncio.gather(alias, other)) == [201, 409]


async def test_an_unreadable_alias_can_be_set_anew_and_removed(api: httpx.AsyncClient, store: EtcdStore) -> None:
    await store.commit({keys.alias("x"): b"{}", keys.alias("y"): b"{}"})
    assert (await api.put("/v1/aliases/x", json=to(a=1))).status_code == 200
    assert (await api.delete("/v1/aliases/y")).status_code == 200


def aliased(a: str | None, b: str | None, *targets: tuple[str, int], name: str = "gpt-4o") -> Snapshot:
    """Deployments "a" and "b" with an engine each, and an alias of both."""
    made = tuple(AliasTarget(deployment=target, weight=weight) for target, weight in targets)
    return Snapshot(
        deployments=(deployment("a"), deployment("b", "other/model")),
        placements=(placement("a"), placement("b")),
        statuses=(status("a-aaaaa-0", endpoint=a), status("b-aaaaa-0", endpoint=b)),
        aliases=(Alias(name=name, created_at="2026-01-01T00:00:09Z", targets=made),),
    )


def asked(engine: HandMadeEngine) -> Counter[str]:
    return Counter(json.loads(call.body)["model"] for call in engine.calls)


async def test_requests_are_split_by_weight_and_engines_hear_their_own_name() -> None:
    async with (
        hand_made_engine(placement="a-aaaaa-0", names=("a",)) as a,
        hand_made_engine(placement="b-aaaaa-0", names=("b",)) as b,
    ):
        fleet = aliased(a.endpoint, b.endpoint, ("a", 3), ("b", 1), ("gone", 5), name="org/model")
        async with running_gateway(fleet) as gateway:
            await until(lambda: len(gateway.replicas.candidates("org/model")) == 2)
            for _ in range(40):
                assert (await gateway.ask(model="org/model", user="é")).status_code == 200
            assert (set(asked(a)), set(asked(b))) == ({"a"}, {"b"})
            before, of_b = len(a.calls), len(b.calls)
            assert before + of_b == 40 and abs(of_b - 10) <= 1
            assert all(json.loads(call.body)["user"] == "é" for call in (*a.calls, *b.calls))
            page = (await gateway.http.get("/metrics")).text
            assert (
                f'deepinfer_requests_total{{model_name="b",path="/v1/chat/completions",status="200"}} {of_b}.0' in page
            )
            assert 'model="org/model"' not in page
            await b.stop()
            await until(lambda: len(gateway.replicas.candidates("org/model")) == 1)
            for _ in range(8):
                assert (await gateway.ask(model="org/model")).status_code == 200
            assert asked(a) == {"a": before + 8}
            gateway.replicas.update(fleet.but(aliases=()))
            assert (await gateway.ask(model="org/model")).status_code == 200
            assert asked(a) == {"a": before + 8, "org/model": 1}  # the model's own name again, as the client wrote it


async def test_what_one_deployment_cannot_answer_goes_to_the_other_under_its_name() -> None:
    broken = answers(b"{}", status=500)
    async with (
        hand_made_engine(placement="a-aaaaa-0", names=("a",), answering=broken) as a,
        hand_made_engine(placement="b-aaaaa-0", names=("b",)) as b,
        running_gateway(aliased(a.endpoint, b.endpoint, ("a", 10_000), ("b", 1))) as gateway,
    ):
        await until(lambda: len(gateway.replicas.candidates("gpt-4o")) == 2)
        assert (await gateway.ask(model="gpt-4o")).status_code == 200
        assert (asked(a), asked(b)) == ({"a": 1}, {"b": 1})


async def test_an_alias_that_cannot_be_read_any_more_goes_where_it_went() -> None:
    async with hand_made_engine(placement="a-aaaaa-0", names=("a",)) as a:
        fleet = aliased(a.endpoint, None, ("a", 1))
        async with running_gateway(fleet) as gateway:
            await until(lambda: gateway.replicas.candidates("gpt-4o"))
            gateway.replicas.update(fleet.but(aliases=(), unreadable={keys.alias("gpt-4o"): "?"}))
            assert (await gateway.ask(model="gpt-4o")).status_code == 200
            assert asked(a) == {"a": 1}
            gateway.replicas.update(fleet.but(aliases=()))
            assert (await gateway.ask(model="gpt-4o")).status_code == 404


async def test_aliases_are_listed_and_say_why_nobody_answers() -> None:
    async with (
        hand_made_engine(placement="a-aaaaa-0", names=("a",)) as a,
        running_gateway(aliased(a.endpoint, None, ("b", 1), ("a", 2))) as gateway,
    ):
        await until(lambda: gateway.replicas.candidates("gpt-4o"))
        listed = {m["id"]: m for m in (await gateway.http.get("/v1/models")).json()["data"]}
        assert list(listed)[-1] == "gpt-4o" and len(listed) == 5
        assert (listed["gpt-4o"]["root"], listed["gpt-4o"]["ready"], "root" in listed["a"]) == ("a", True, False)
        assert (await gateway.http.get("/v1/models/gpt-4o")).json() == listed["gpt-4o"]
        for target, words in (("b", "b-aaaaa-0 on node-1 was ready but"), ("gone", "gone is not deployed; `deep")):
            gateway.replicas.update(aliased(a.endpoint, None, (target, 1)))
            refused = await gateway.ask(model="gpt-4o")
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "no_ready_replica")
            assert f"'gpt-4o' is an alias, but no replica is ready: {words}" in refused.json()["error"]["message"]


async def test_a_new_generation_gets_the_share_that_its_deployment_says() -> None:
    async with (
        hand_made_engine(placement="a-aaaaa-0", names=("a",)) as old,
        hand_made_engine(placement="a-aaaaa-1", names=("a",)) as new,
    ):
        spec = {"max_model_len": 64, "rollout": {"new_generation_percent": 20}}
        wanted = deployment("a").model_dump(mode="json")
        wanted["spec"] |= spec
        newer = placement("a", replica=1)
        newer = newer.model_copy(update={"spec": newer.spec.model_copy(update={"max_model_len": 64})})
        fleet = Snapshot(
            deployments=(deployment("a").model_validate(wanted),),
            placements=(placement("a"), newer),
            statuses=(status("a-aaaaa-0", endpoint=old.endpoint), status("a-aaaaa-1", endpoint=new.endpoint)),
        )
        async with running_gateway(fleet) as gateway:
            await until(lambda: len(gateway.replicas.candidates("a")) == 2)
            for _ in range(40):
                assert (await gateway.ask(model="a")).status_code == 200
            assert len(old.calls) + len(new.calls) == 40 and abs(len(new.calls) - 8) <= 1
