"""The options of `deploy` that say what runs and where: one for each field of a deployment's spec.

Options left out are not sent: the defaults are the server's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from deepinfer.cli.failures import InvalidInput

Pairs = list[str] | None

Model = Annotated[str, typer.Argument(help="A known name such as smollm2, or a Hugging Face id.")]
Name = Annotated[str | None, typer.Option(help="The deployment's name.  [default: from the model]")]
Engine = Annotated[str | None, typer.Option(help="What computes: vllm, layer-shard or sim.")]
EngineVersion = Annotated[
    str | None, typer.Option(metavar="X.Y.Z", help="One that is installed.  [default: the newest that fits]")
]
Backend = Annotated[str | None, typer.Option(help="How it runs: native or docker.")]
DockerImage = Annotated[str | None, typer.Option(metavar="IMAGE", help="For backend docker.")]
Docker = Annotated[Pairs, typer.Option(metavar="K=V", help="How its container is made, such as memory=16g.")]
ModelPath = Annotated[str | None, typer.Option(metavar="DIR", help="The model's folder on the node.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda:0, or several: 0,1.")]
TensorParallelSize = Annotated[int | None, typer.Option(help="Devices that share one replica.")]
GpuMemoryUtilization = Annotated[float | None, typer.Option(help="Share of the memory, above 0 to 1.")]
Replicas = Annotated[int | None, typer.Option(help="How many copies.")]
Dtype = Annotated[str | None, typer.Option(help="auto, float32, float16 or bfloat16.")]
Quantization = Annotated[str | None, typer.Option(metavar="METHOD", help="Of vLLM, such as fp8 or awq.")]
MaxModelLen = Annotated[int | None, typer.Option(metavar="TOKENS", help="Longest prompt plus answer.")]
EngineArg = Annotated[Pairs, typer.Option(metavar="K=V", help="An engine's own option; V is JSON or text.")]
Env = Annotated[Pairs, typer.Option(metavar="K=V", help="An environment variable of the engine.")]
Priority = Annotated[int | None, typer.Option(help="May take devices of lower ones, -1000 to 1000.")]
NodeSelector = Annotated[Pairs, typer.Option(metavar="K=V", help="A label that its nodes must have.")]
AntiAffinity = Annotated[
    list[str] | None, typer.Option(metavar="NAME", help="A deployment, itself perhaps, to share no node with.")
]
Strategy = Annotated[str | None, typer.Option(help="Which nodes it prefers: spread or pack.")]
Routing = Annotated[
    str | None, typer.Option(help="How requests find a replica: kv, session, least-loaded, round-robin or random.")
]
Role = Annotated[str | None, typer.Option(help="What it computes of a request: both, prefill or decode.")]
Stages = Annotated[int | None, typer.Option(help="Nodes that share each replica's layers.")]
Spares = Annotated[int | None, typer.Option(help="Processes that wait for a stage to be lost.")]
StageLayers = Annotated[
    str | None, typer.Option(metavar="N,N,…", help="Layers of each stage.  [default: by what they can hold]")
]
MaxSurge = Annotated[int | None, typer.Option(help="Replicas above the wanted number in a rollout.")]
MaxUnavailable = Annotated[int | None, typer.Option(help="Replicas below it in a rollout.")]
RolloutDeadline = Annotated[
    int | None, typer.Option(metavar="SECONDS", help="Without progress, before what was good comes back.")
]
NewGenerationPercent = Annotated[
    int | None, typer.Option(metavar="PERCENT", help="Of requests, to new replicas in a rollout.  [default: by load]")
]

_AS_THEY_ARE = (
    *("model", "name", "engine", "engine_version", "backend", "docker_image", "model_path", "device"),
    *("tensor_parallel_size", "gpu_memory_utilization", "replicas", "dtype", "quantization", "max_model_len"),
    *("priority", "anti_affinity", "strategy", "routing", "role"),
)


def fields_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """The body of POST /v1/deployments that the options of a command ask for."""
    rollout = {
        "max_surge": options["max_surge"],
        "max_unavailable": options["max_unavailable"],
        "deadline_seconds": options["rollout_deadline"],
        "new_generation_percent": options["new_generation_percent"],
    }
    pipeline = {
        "stages": options["stages"],
        "spares": options["spares"],
        "layers": _counts(options["stage_layers"]),
    }
    fields = {
        **{field: options[field] for field in _AS_THEY_ARE},
        "docker": {key: _value(text) for key, text in pairs(options["docker"], "--docker")},
        "engine_args": engine_args(options["engine_arg"]),
        "env": dict(pairs(options["env"], "--env")),
        "node_selector": dict(pairs(options["node_selector"], "--node-selector")),
        "rollout": _said(rollout),
        "pipeline": _said(pipeline),
    }
    return {field: value for field, value in fields.items() if value not in (None, {}, [], ())}


def _said(parts: Mapping[str, Any]) -> dict[str, Any]:
    return {part: value for part, value in parts.items() if value is not None}


def _counts(text: str | None) -> list[int] | None:
    try:
        return None if text is None else [int(count) for count in text.split(",")]
    except ValueError:
        raise InvalidInput(f"--stage-layers wants numbers such as 5,13,14, not {text!r}.") from None


def engine_args(given: Pairs) -> dict[str, Any]:
    """Each value as JSON where it is JSON, else as the text it is: `--engine-arg mode=fast` needs no quotes."""
    return {key: _value(text) for key, text in pairs(given, "--engine-arg")}


def pairs(given: Pairs, option: str) -> list[tuple[str, str]]:
    split = [pair.partition("=") for pair in given or []]
    for key, equals, _ in split:
        if not key or not equals:
            raise InvalidInput(f"{option} wants K=V, not {key!r}.")
    return [(key, value) for key, _, value in split]


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
