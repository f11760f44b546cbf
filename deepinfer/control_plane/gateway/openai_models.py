"""The router's models in OpenAI's words. `ready` is ours: a model is listed from its deployment on."""

from __future__ import annotations

from typing import Any

import msgspec

from deepinfer.control_plane.access.caller import Caller
from deepinfer.control_plane.gateway.asgi import Reply
from deepinfer.control_plane.openai_errors import ModelNotAllowed
from deepinfer.control_plane.router.replicas import Replicas
from deepinfer.control_plane.router.served_models import ServedModel
from deepinfer.fleet.errors import ModelNotServed, NoReadyReplica

NAMES_SHOWN = 5


def model_list(replicas: Replicas, caller: Caller) -> Reply:
    """Those that the caller may use."""
    listed = {"object": "list", "data": [_model(model) for model in replicas.models() if caller.may_use(model.name)]}
    return Reply(200, msgspec.json.encode(listed))


def one_model(replicas: Replicas, caller: Caller, name: str) -> Reply:
    if not caller.may_use(name):
        raise ModelNotAllowed(f"The API key {caller.name} may not use the model '{name[:200]}'.")
    for model in replicas.models():
        if model.name == name:
            return Reply(200, msgspec.json.encode(_model(model)))
    if not replicas.knows(name) or replicas.only_prefills(name):
        raise nobody_for(replicas, name)
    raise NoReadyReplica(_not_ready(replicas, name))


def nobody_for(replicas: Replicas, model: str) -> ModelNotServed | NoReadyReplica:
    """Why no replica can take a request for `model`, with what to do about it."""
    if not replicas.has_view:
        return NoReadyReplica("The gateway has just started and has not read what is deployed; try again shortly.")
    if replicas.only_prefills(model):
        return ModelNotServed(f"'{model}' answers no requests: {replicas.waits_for(model)}. {_served(replicas)}")
    if replicas.knows(model):
        return NoReadyReplica(_not_ready(replicas, model))
    return ModelNotServed(f"The model '{model[:200]}' is not served here. {_served(replicas)}")


def _not_ready(replicas: Replicas, model: str) -> str:
    known_as = "an alias" if replicas.is_alias(model) else "deployed"
    return f"'{model}' is {known_as}, but no replica is ready: {replicas.waits_for(model)}."


def _served(replicas: Replicas) -> str:
    names = [model.name for model in replicas.models()]
    if not names:
        return "Nothing is deployed yet: `deepinfer deploy MODEL` deploys a model."
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return f"Served: {', '.join(names[:NAMES_SHOWN])}{more}."


def _model(model: ServedModel) -> dict[str, Any]:
    above = {"parent": model.parent, "root": model.root}
    return {name: value for name, value in above.items() if value is not None} | {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "deepinfer",
        "ready": model.ready,
    }
