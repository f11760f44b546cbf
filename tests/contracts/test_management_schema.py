"""Every route of the management API against its own description: whatever is asked, no 500, and nothing undescribed.

Routes are found in /openapi.json, so one that is added is tried too. Over a real etcd and real HTTP.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from deepinfer.control_plane.management.app import management_app
from deepinfer.fleet.errors import StoreUnavailable
from deepinfer.fleet.mirror import Mirror
from deepinfer.fleet.store import EtcdStore
from tests.fleet_values import placement, status
from tests.management_parts import node, serving, write

EXAMPLES = 15
KNOWN = {"name": "chat", "replica": placement().id}
"""What there is, in place of a name that was made up."""


def never() -> Mirror:
    raise StoreUnavailable


def is_no_fault(
    context: schemathesis.CheckContext, response: schemathesis.Response, case: schemathesis.Case[Any]
) -> None:
    """A 503 is none: a node that is known here does not answer."""
    assert response.status_code in range(200, 500) or response.status_code == 503, response.text


CHECKS = [is_no_fault, status_code_conformance, content_type_conformance, response_schema_conformance]
schema = schemathesis.openapi.from_dict(management_app(never).openapi())
schema.config.phases.coverage.enabled = False  # it takes minutes: every boundary of every field of a spec


@pytest.fixture(scope="module")
def url(etcd: str) -> Iterator[str]:
    """Of an API that is served by a thread: what schemathesis sends is sent without a loop."""
    told: list[str] = []
    is_up, over = threading.Event(), threading.Event()

    async def serve() -> None:
        async with EtcdStore.connect([etcd]) as store:
            await store.commit(dict.fromkeys((await store.read("")).entries))
            await write(store, node("chat", accelerators=2), placement(node="chat"), status())
            async with serving(store) as client:
                told.append(str(client.base_url))
                is_up.set()
                await asyncio.to_thread(over.wait)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    assert is_up.wait(30)
    yield told[0]
    over.set()
    thread.join()


@pytest.fixture
def known(url: str) -> str:
    """There is something under the names that are known."""
    spec = {"model": "org/model", "engine": "sim"}
    with httpx.Client(base_url=url, verify=False) as http:  # noqa: S501 - there is no TLS, and its store takes long to read
        for path, body in (
            ("/v1/deployments/chat", spec),
            ("/v1/deployments/chat", {**spec, "max_model_len": 64}),
            ("/v1/aliases/other", {"targets": [{"deployment": "chat"}]}),
        ):
            http.put(path, json=body).raise_for_status()
    return url


@schema.parametrize()
@settings(max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_no_request_is_a_server_error_or_answered_otherwise_than_described(
    case: schemathesis.Case[Any], known: str
) -> None:
    body = case.body
    if isinstance(body, dict) and isinstance(wait := body.get("wait_seconds"), int | float) and wait > 0:
        case.body = {**body, "wait_seconds": 0}  # nothing becomes ready here
    case.call_and_validate(base_url=known, checks=CHECKS)
    if case.path_parameters:
        case.path_parameters = {**case.path_parameters, **{k: v for k, v in KNOWN.items() if k in case.path_parameters}}
        case.call_and_validate(base_url=known, checks=CHECKS)
