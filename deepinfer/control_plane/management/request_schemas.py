"""What /docs says about request bodies. Bodies are read by hand (json_body, admission), so FastAPI cannot know."""

from __future__ import annotations

from typing import Any

from deepinfer.control_plane.management.admission import ALLOWED
from deepinfer.control_plane.management.key_requests import ALLOWED as OF_KEYS
from deepinfer.control_plane.management.key_requests import KeyChanges, NewKey
from deepinfer.fleet.spec import DeploymentSpec

_EXAMPLE = {"model": "smollm2", "engine": "layer-shard", "device": "cpu", "replicas": 1}


def _key_fields(kind: type[KeyChanges]) -> dict[str, Any]:
    """Its limits are in the document already, as those of `KeyLimits`."""
    fields: dict[str, Any] = kind.model_json_schema(ref_template="#/components/schemas/{model}")["properties"]
    fields["limits"] = {"$ref": "#/components/schemas/KeyLimits"}
    return {name: {**field, "description": OF_KEYS[name]} for name, field in fields.items()}


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
NEW_KEY = _body(_key_fields(NewKey), ["name"], {"name": "team-a", "models": ["smollm2"]})
KEY_CHANGES = _body(_key_fields(KeyChanges), [], {"limits": {"requests_per_minute": 600}})
_WAIT = {
    "wait_seconds": {
        "type": "number",
        "minimum": 0,
        "maximum": 600,
        "default": 0,
        "description": "How long to wait for it to be ready before the answer.",
    }
}
_MODEL_NAME = {"type": "string", "minLength": 1}
LOAD = _body({**_NAME, **_fields(), **_WAIT}, ["model"], {**_EXAMPLE, "wait_seconds": 5})
UNLOAD = _body(
    {
        "name": {**_MODEL_NAME, "description": "The deployment's name."},
        "model": {**_MODEL_NAME, "description": "Or the model's, where one deployment has it."},
    },
    [],
    {"model": "smollm2"},
)
HOT_SWAP = _body(
    {
        "from": {**_MODEL_NAME, "description": "The deployment's name, or its model's."},
        "to": {**_MODEL_NAME, "description": "The model that comes instead; `model` says the same."},
        **_fields(),
        **_WAIT,
    },
    ["from"],
    {"from": "smollm2", "to": "Qwen/Qwen3-0.6B", "wait_seconds": 5},
)
