"""API keys over the management API and a real etcd, and who comes in by them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from deepinfer.control_plane.access.key_ring import KeyRing, digest_shown
from deepinfer.fleet import keys
from deepinfer.fleet.api_key import ApiKey, digest_of
from deepinfer.fleet.store import EtcdStore
from tests.keyed import ADMIN_TOKEN, USER, key
from tests.management_parts import error_of, serving

PATH = "/v1/api_keys"


@pytest.fixture
async def api(store: EtcdStore) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(store) as client:
        yield client


async def test_a_key_is_made_shown_changed_and_revoked_and_its_secret_told_once(
    api: httpx.AsyncClient, store: EtcdStore
) -> None:
    asked = {"name": "team", "models": ["chat"], "limits": {"requests_per_minute": 60}, "priority": -5}
    made = await api.post(PATH, json=asked)
    assert (made.status_code, made.headers["cache-control"]) == (201, "no-store")
    view = made.json()
    secret, key_id = view.pop("secret"), view["id"]
    assert (view["role"], view["models"], view["priority"], view["expires_at"]) == ("user", ["chat"], -5, None)
    assert (await api.get(PATH)).json() == {"object": "list", "data": [view]}
    assert (await api.get(f"{PATH}/{key_id}")).json() == view

    changed = await api.patch(f"{PATH}/{key_id}", json={"limits": {"concurrent_streams": 2}, "models": None})
    assert changed.json()["limits"] == {
        "requests_per_minute": None,
        "tokens_per_minute": None,
        "concurrent_streams": 2,
    }
    assert (changed.json()["models"], changed.json()["priority"]) == ([], -5)

    stored = (await store.read(keys.FLEET)).values
    assert secret.encode() not in b"".join(stored.values())
    assert ApiKey.model_validate_json(stored[keys.api_key(key_id)]).sha256 == digest_of(secret)
    for answer in (made, changed, await api.get(PATH)):
        assert digest_of(secret) not in answer.text

    ring = KeyRing(ADMIN_TOKEN)
    ring.update((await store.view()).fleet)
    limits = ring.caller(digest_shown(secret.encode())).limits
    assert limits is not None and limits.concurrent_streams == 2
    assert (await api.delete(f"{PATH}/{key_id}")).json() == {"id": key_id, "revoked": True}
    assert not (await store.read(keys.API_KEYS)).entries
    for gone in (
        await api.delete(f"{PATH}/{key_id}"),
        await api.get(f"{PATH}/{key_id}"),
        await api.patch(f"{PATH}/{key_id}", json={}),
    ):
        assert (gone.status_code, error_of(gone)["code"]) == (404, "api_key_not_found")


async def test_a_name_is_given_once_and_a_time_becomes_a_moment(api: httpx.AsyncClient) -> None:
    made = await api.post(PATH, json={"name": "team", "role": "admin", "expires_in_seconds": 86400})
    assert made.json()["role"] == "admin"
    assert made.json()["created_at"] < made.json()["expires_at"]
    again = await api.post(PATH, json={"name": "team"})
    assert (again.status_code, error_of(again)["code"]) == (409, "api_key_exists")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "name"),
        ({"name": "A B"}, "name"),
        ({"name": 5}, "name"),
        ({"name": "a", "role": "root"}, "role"),
        ({"name": "a", "models": "chat"}, "models"),
        ({"name": "a", "models": [""]}, "models"),
        ({"name": "a", "limits": {"requests_per_minute": 0}}, "limits.requests_per_minute"),
        ({"name": "a", "limits": {"tokens_per_minute": "5"}}, "limits.tokens_per_minute"),
        ({"name": "a", "limits": {"requests_per_hour": 5}}, "limits.requests_per_hour"),
        ({"name": "a", "limits": []}, "limits"),
        ({"name": "a", "priority": 101}, "priority"),
        ({"name": "a", "priority": True}, "priority"),
        ({"name": "a", "expires_in_seconds": 0}, "expires_in_seconds"),
        ({"name": "a", "secret": "mine"}, "secret"),
        ({"name": "a", "sha256": "0" * 64}, "sha256"),
    ],
)
async def test_a_wrong_field_is_named(api: httpx.AsyncClient, body: dict[str, Any], param: str) -> None:
    refused = await api.post(PATH, json=body)
    assert (refused.status_code, error_of(refused)["param"]) == (400, param)
    assert not (await api.get(PATH)).json()["data"]


@pytest.mark.parametrize("field", ["role", "name", "sha256", "expires_in_seconds"])
async def test_what_a_key_is_cannot_be_changed(api: httpx.AsyncClient, field: str) -> None:
    key_id = (await api.post(PATH, json={"name": "team"})).json()["id"]
    refused = await api.patch(f"{PATH}/{key_id}", json={field: "admin"})
    assert (refused.status_code, error_of(refused)["param"]) == (400, field)
    assert (await api.get(f"{PATH}/{key_id}")).json()["role"] == "user"


@pytest.mark.parametrize("key_id", ["team", "..", "0" * 13, "00000000000G"])
async def test_what_is_no_id_is_not_looked_up(api: httpx.AsyncClient, key_id: str) -> None:
    assert (await api.delete(f"{PATH}/{key_id}")).status_code in (400, 404, 405)


async def test_a_key_of_a_newer_version_keeps_what_is_not_known_here(api: httpx.AsyncClient, store: EtcdStore) -> None:
    newer = key(USER)
    other = "f" * 12
    unreadable = newer.to_json().replace(b'"user"', b'"auditor"')
    await store.commit(
        {keys.api_key(newer.id): newer.to_json()[:-1] + b', "tenant": "a"}', keys.api_key(other): unreadable}
    )
    assert (await api.patch(f"{PATH}/{newer.id}", json={"priority": 7})).json()["priority"] == 7
    stored = (await store.read(keys.api_key(newer.id))).values[keys.api_key(newer.id)]
    assert ApiKey.model_validate_json(stored).model_extra == {"tenant": "a"}
    assert (await api.patch(f"{PATH}/{other}", json={"priority": 7})).status_code == 400
    assert (await api.delete(f"{PATH}/{other}")).status_code == 200
    assert [view["id"] for view in (await api.get(PATH)).json()["data"]] == [newer.id]
