"""What /docs says about request bodies. Bodies are read by hand (json_body, admission), so FastAPI cannot know."""

from __future__ import annotations

from typing import Any

from deepinfer.control_plane.management.admission import ALLOWED
from deepinfer.fleet.spec import DeploymentSpec

_EXAMPLE = {"model": "smollm2", "engine": "layer-shard", "device": "cpu", "replicas": 1}


def _fields() -> dict[str, Any]:
    """The spec's fields; the types they refer to are in the document already, because answers have them too."""
    fields: dict[str, Any] = DeploymentSpec.model_json_schema(ref_template="#/components/schemas/{model}")["properties"]
    return {name: {**field, "description": ALLOWED[name]} for name, field in fields.items()}


def _body(fields: dict[str, Any], required: list[str], example: dict[str, Any]) -> dict[str, Any]:
    schema = {"type": "object", "properties": fields, "required": required, "additionalProperties": False}
    content = {"application/json": {"schema": schema, "example": example}}
    return {"requestBody": {"required": True, "content": content}}


def _list(items: dict[str, Any]) -> dict[str, Any]:
    schema = {"type": "object", "properties": items, "required": ["model"], "additionalProperties": False}
    return {"deployments": {"type": "array", "items": schema}}


_NAME = {"name": {"type": "string", "description": ALLOWED["name"]}}
NEW_DEPLOYMENT = _body({**_NAME, **_fields()}, ["model"], _EXAMPLE)
ALL_DEPLOYMENTS = _body(_list({**_NAME, **_fields()}), ["deployments"], {"deployments": [_EXAMPLE]})
SPEC = _body(_fields(), ["model"], _EXAMPLE)
SPEC_CHANGES = _body(_fields(), [], {"replicas": 2})
UNDO = _body({"to": {"type": "integer", "minimum": 1, "description": "The generation to go back to."}}, [], {"to": 1})
