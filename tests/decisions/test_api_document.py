"""What /openapi.json says of the management API: whoever reads /docs finds each route described in full."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from deepinfer.control_plane.management.app import management_app
from deepinfer.fleet.errors import StoreUnavailable
from deepinfer.fleet.mirror import Mirror


def never() -> Mirror:
    raise StoreUnavailable


DOCUMENT = management_app(never).openapi()


def operations() -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in DOCUMENT["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def test_every_route_has_a_summary_a_description_and_a_tag_that_has_one() -> None:
    described = {tag["name"] for tag in DOCUMENT["tags"] if tag["description"]}
    for route, operation in operations():
        assert operation["summary"] and operation["description"], route
        assert operation["tags"] and set(operation["tags"]) <= described, route
        assert all(parameter.get("description") for parameter in operation.get("parameters", [])), route
    assert described == {tag for _, operation in operations() for tag in operation["tags"]}


def test_every_route_has_an_id_of_its_own_that_its_path_is_no_part_of() -> None:
    ids = [operation["operationId"] for _, operation in operations()]
    assert len(set(ids)) == len(ids)
    assert {"list_deployments", "put_alias", "load_model", "cordon_node"} <= set(ids)


def test_every_body_has_an_example_and_every_refusal_openais_shape() -> None:
    for route, operation in operations():
        if body := operation.get("requestBody"):
            assert body["content"]["application/json"]["example"], route
        refused = {status: answer for status, answer in operation["responses"].items() if status >= "400"}
        assert {"401", "403", "503"} <= set(refused) and "422" not in refused, route
        for answer in refused.values():
            content = answer["content"]["application/json"]
            assert content["schema"] == {"$ref": "#/components/schemas/Error"}, route
            assert set(content["example"]["error"]) == {"message", "type", "param", "code"}, route
    assert DOCUMENT["components"]["schemas"]["Error"]["required"] == ["error"]
