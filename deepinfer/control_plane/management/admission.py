"""What a user may ask for: a request body becomes a name and a spec, or a sentence on what to write instead. Pure.

Values of `env` are never repeated in a message, because they may be secret.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from deepinfer.control_plane.management.json_body import LIMIT_BYTES
from deepinfer.engine_environments.flags import check_reserved
from deepinfer.engine_shim.engine_args import check_engine_args
from deepinfer.fleet.errors import InvalidRequest
from deepinfer.fleet.parallelism import contradiction
from deepinfer.fleet.pipeline import HOSTS_SUFFIX, deployment_served, is_hosts_name
from deepinfer.fleet.resource import LONGEST_NAME, Name
from deepinfer.fleet.spec import Backend, DeploymentSpec, EngineKind, ReplicaRole

OPTIONS = {
    "network": '"host", "bridge" or the name of a network',
    "pull": '"missing", "always" or "never"',
    "entrypoint": 'a list of words, such as ["vllm", "serve"]',
    "ipc": '"private" or "host"',
    "shm_size": 'a size such as "512m" or "8g"',
    "memory": 'a size such as "512m" or "8g"',
    "cpus": "a number above 0 and at most 4096",
    "ulimits": 'an object of limits in lower case and whole numbers, such as {"memlock": -1}',
    "mounts": 'a list, such as ["/data:/data:ro"]',
    "user": 'a user of the image, such as "1000:1000"',
    "kv_events": "true or false",
}
"""Of a container."""
ROLLOUT = {
    "max_surge": "a whole number from 0 to 1024",
    "max_unavailable": "a whole number from 0 to 1024",
    "deadline_seconds": "a whole number from 1 to 86400",
    "new_generation_percent": "a whole number from 0 to 100, or null",
}
PIPELINE = {
    "stages": "a whole number from 2 to 64",
    "spares": "a whole number from 0 to 64",
    "layers": "a list of how many layers each stage has, such as [5, 13, 14], or null",
}
PARTS = {"docker": OPTIONS, "rollout": ROLLOUT, "pipeline": PIPELINE}
"""The fields that are objects of known parts."""
ALLOWED = {
    "name": "at most 63 lower-case letters, digits, '.', '_' or '-', with a letter or digit at both ends",
    "model": "a model's name, such as smollm2 or Qwen/Qwen3-0.6B: letters, digits and . _ / : -",
    "engine": '"vllm", "layer-shard" or "sim"',
    "engine_version": "a version such as 0.32.0, of an engine that is installed",
    "backend": '"native" or "docker"',
    "docker_image": "an image that serves vLLM's OpenAI API, such as vllm/vllm-openai:v0.11.0",
    "docker": f"an object of {', '.join(OPTIONS)}",
    "model_path": "an absolute path on the node, without '..'",
    "device": '"auto", "cpu", or CUDA devices such as "cuda:0" or "0,1"',
    "tensor_parallel_size": "a whole number of devices, 1 or more",
    "gpu_memory_utilization": "a number above 0 and at most 1",
    "replicas": "a whole number from 0 to 1024",
    "dtype": '"auto", "float32", "float16" or "bfloat16"',
    "quantization": 'the name of a method of vLLM\'s, such as "fp8" or "awq"',
    "max_model_len": "a whole number of tokens from 16 to 100000000",
    "engine_args": "an object of the engine's own options",
    "env": "an object of environment variables: names of letters, digits and _, and strings",
    "priority": "a whole number from -1000 to 1000",
    "node_selector": 'an object of labels that its nodes must have, such as {"zone": "a"}',
    "anti_affinity": 'a list of deployments that no node of its replicas may also run, such as ["chat"]',
    "strategy": '"spread" or "pack"',
    "routing": '"kv", "session", "least-loaded", "round-robin" or "random"',
    "role": '"both", "prefill" or "decode"',
    "rollout": f"an object of {', '.join(ROLLOUT)}",
    "pipeline": f"an object of {', '.join(PIPELINE)}; its stages are on several nodes",
}
_NAME: TypeAdapter[str] = TypeAdapter(Name)


def admitted(body: Mapping[str, Any], name: str | None = None) -> tuple[str, DeploymentSpec]:
    """The name (of the path, of the body, or made from the model) and the spec that a whole body asks for."""
    fields = _named(body, name)
    spec = _spec(fields)
    own = name or body.get("name")
    checked = checked_name(default_name(spec.model) if own is None else own)
    _refuse_the_name_of_hosts(checked, spec)
    return checked, spec


def admitted_all(body: Mapping[str, Any]) -> dict[str, DeploymentSpec]:
    """By name, what a body with several deployments asks for."""
    listed = body.get("deployments")
    if list(body) != ["deployments"] or not isinstance(listed, list):
        raise InvalidRequest('The body must be {"deployments": [...]}, a list of objects such as {"model": "smollm2"}.')
    found: dict[str, DeploymentSpec] = {}
    for number, one in enumerate(listed):
        name, spec = _one_of_many(one, f"deployments[{number}]")
        if name in found:
            raise InvalidRequest(f"{name} is there twice; give each a name of its own.", param="name")
        found[name] = spec
    return found


def _one_of_many(body: Any, which: str) -> tuple[str, DeploymentSpec]:
    if not isinstance(body, dict) or len(json.dumps(body)) > LIMIT_BYTES:
        raise InvalidRequest(f"{which} must be an object of at most {LIMIT_BYTES} bytes.", param=which)
    try:
        return admitted(body)
    except InvalidRequest as error:
        param = f"{which}.{error.param}" if error.param else which
        raise InvalidRequest(f"{body.get('name') or which}: {error}", param) from error


def _refuse_the_name_of_hosts(name: str, spec: DeploymentSpec) -> None:
    if is_hosts_name(name):
        told = f"{name} is what the stages of a deployment {deployment_served(name)} would be called; choose another."
        raise InvalidRequest(told, param="name")
    longest = LONGEST_NAME - len(HOSTS_SUFFIX)
    if spec.pipeline is not None and len(name) > longest:
        raise InvalidRequest(f"With a pipeline a name has at most {longest} characters.", param="name")


def amended(spec: DeploymentSpec, changes: Mapping[str, Any], name: str) -> DeploymentSpec:
    """The spec with some fields replaced as a whole; null gives a field its default again."""
    return _spec(spec.model_dump(mode="json") | _named(changes, name))


def default_name(model: str) -> str:
    """What a deployment is called when the user does not say: the last part of the model's name."""
    last = model.rstrip("/").rpartition("/")[2].lower()
    return re.sub(r"[^a-z0-9._-]", "-", last)[:63].strip("._-")


def checked_name(name: Any) -> str:
    try:
        return _NAME.validate_python(name, strict=True)
    except ValidationError as error:
        raise InvalidRequest(f"name must be {ALLOWED['name']}{_got(name)}.", param="name") from error


def _named(body: Mapping[str, Any], name: str | None) -> dict[str, Any]:
    """The fields of the spec in the body; `name`, where the path gives one, may be repeated but not changed."""
    for field in body:
        if field not in ALLOWED:
            raise InvalidRequest(_unknown(field, ALLOWED), param=field)
    for field, parts in PARTS.items():
        _refuse_unknown_parts(body.get(field), field, parts)
    if name is not None and body.get("name", name) != name:
        raise InvalidRequest(f"name cannot be changed from {name}; leave it out.", param="name")
    return {field: value for field, value in body.items() if field != "name"}


def _spec(fields: Mapping[str, Any]) -> DeploymentSpec:
    given = {field: value for field, value in fields.items() if value is not None}
    try:
        spec = DeploymentSpec.model_validate_json(json.dumps(given), strict=True)
    except ValidationError as error:
        raise _refused(error.errors()[0]) from error
    _refuse_what_is_not_built(spec)
    _refuse_contradictions(spec)
    check_engine_args(spec.engine, spec.engine_args)
    check_reserved(spec.engine, spec.engine_args)
    return spec


def _refuse_unknown_parts(given: Any, field: str, parts: Mapping[str, str]) -> None:
    """Of a body only: a stored record keeps what it does not know, a user has mistyped it."""
    for part in given if isinstance(given, Mapping) else ():
        if part not in parts:
            raise InvalidRequest(_unknown(part, parts, f"{field}."), param=f"{field}.{part}")


def _refuse_what_is_not_built(spec: DeploymentSpec) -> None:
    if spec.engine is EngineKind.VLLM:
        return
    if (spec.tensor_parallel_size or 1) > 1:
        told = f"{spec.engine} has no tensor_parallel_size above 1 yet; leave it out, or use vllm."
        raise InvalidRequest(told, param="tensor_parallel_size")
    if "," in spec.device:
        told = f'{spec.engine} cannot use several devices yet; name one, as in "cuda:0", or use vllm.'
        raise InvalidRequest(told, param="device")


def _refuse_contradictions(spec: DeploymentSpec) -> None:
    if reason := contradiction(spec):
        raise InvalidRequest(f"{reason}.", param="device")
    if spec.backend is Backend.DOCKER:
        _refuse_what_no_image_runs(spec)
    if spec.quantization is not None and spec.engine is not EngineKind.VLLM:
        raise InvalidRequest(f"{spec.engine} has no quantization; leave it out, or use vllm.", param="quantization")
    if spec.role is not ReplicaRole.BOTH:
        _refuse_role_without_transfers(spec)


def _refuse_what_no_image_runs(spec: DeploymentSpec) -> None:
    if spec.docker_image is None:
        example = 'such as "vllm/vllm-openai:v0.11.0"'
        raise InvalidRequest(f'backend "docker" needs docker_image: {example}.', param="docker_image")
    if spec.engine is not EngineKind.VLLM:
        raise InvalidRequest(
            f'backend "docker" runs images that serve vLLM\'s API; {spec.engine} runs with "backend": "native".',
            param="engine",
        )
    if spec.engine_version is not None:
        raise InvalidRequest("The image has its version; leave engine_version out.", param="engine_version")


def _refuse_role_without_transfers(spec: DeploymentSpec) -> None:
    if spec.engine is EngineKind.LAYER_SHARD:
        told = f"{spec.engine} cannot hand its KV cache over; leave role out, or use vllm."
        raise InvalidRequest(told, param="role")
    given = {name.lstrip("-").replace("-", "_").partition(".")[0] for name in spec.engine_args}
    if spec.engine is EngineKind.VLLM and "kv_transfer_config" not in given:
        example = '{"kv_connector": "NixlConnector", "kv_role": "kv_both"}'
        told = f'role "{spec.role}" needs engine_args.kv_transfer_config, such as {example}.'
        raise InvalidRequest(told, param="role")


def _refused(wrong: ErrorDetails) -> InvalidRequest:
    """Pydantic's finding in our words."""
    field = str(wrong["loc"][0]) if wrong["loc"] else None
    if field is None:
        return InvalidRequest(f"{_reason(wrong)}.")
    if field in PARTS and len(wrong["loc"]) > 1:
        return _refused_part(field, str(wrong["loc"][1]), wrong)
    if wrong["type"] == "missing":
        return InvalidRequest(f"{field} is required: {ALLOWED[field]}.", param=field)
    if wrong["type"] == "value_error":
        return InvalidRequest(f"{field}: {_reason(wrong)}.", param=field)
    return InvalidRequest(f"{field} must be {ALLOWED[field]}{'' if field == 'env' else _got(wrong['input'])}.", field)


def _refused_part(field: str, part: str, wrong: ErrorDetails) -> InvalidRequest:
    param = f"{field}.{part}"
    if wrong["type"] == "value_error":
        return InvalidRequest(f"{param}: {_reason(wrong)}.", param=param)
    return InvalidRequest(f"{param} must be {PARTS[field][part]}{_got(wrong['input'])}.", param=param)


def _reason(wrong: ErrorDetails) -> str:
    return wrong["msg"].removeprefix("Value error, ")


def _unknown(field: str, known: Mapping[str, str], of: str = "") -> str:
    near = difflib.get_close_matches(field.lower(), known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"the fields are {', '.join(known)}."
    return f"Unknown field {json.dumps(f'{of}{field[:64]}')}; {hint}"


def _got(value: Any) -> str:
    shown = json.dumps(value, default=str)
    return f", not {shown if len(shown) <= 80 else shown[:77] + '...'}"
