"""What a user may ask for: a model, what computes it, on what, and how many times."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any

from pydantic import Field, StringConstraints, field_validator, model_validator

from deepinfer.fleet.pipeline import PipelineOptions
from deepinfer.fleet.resource import LabelKey, LabelValue, Name, Record, Version

DEVICES = r"^(auto|cpu|([a-z]{2,8}:)?\d{1,4}(,([a-z]{2,8}:)?\d{1,4})*)$"
IMAGE = (
    r"^[a-z0-9][A-Za-z0-9._-]*(:\d{1,5})?(/[A-Za-z0-9._-]+)*"
    r"(:[A-Za-z0-9_][A-Za-z0-9._-]{0,127})?(@sha256:[0-9a-f]{64})?$"
)
SIZE = r"^[1-9]\d{0,11}[bkmg]?$"
EnvName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,127}$")]
_SECRET = re.compile(r"(TOKEN(?!IZERS)|SECRET|PASSW|CREDENTIAL|API_?KEY|PRIVATE_?KEY)", re.IGNORECASE)


def looks_secret(variable: str) -> bool:
    """By its name. What does must neither be stored readably nor reach an engine."""
    return _SECRET.search(variable) is not None


def without_secrets(variables: Mapping[str, str]) -> dict[str, str]:
    """What an engine may inherit of an environment."""
    return {name: value for name, value in variables.items() if not looks_secret(name)}


_DEEPEST = 32
_LARGEST = 2**64


def _check_plain(value: Any, depth: int = 0) -> None:
    """What one process writes, all others must be able to read again, and to count with."""
    if depth > _DEEPEST:
        raise ValueError(f"must not be nested more than {_DEEPEST} deep")
    if isinstance(value, (int, float)) and not -_LARGEST < value < _LARGEST:
        raise ValueError("numbers must be finite and have at most 64 bits")
    for part in (*value, *value.values()) if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_plain(part, depth + 1)


class EngineKind(StrEnum):
    """What computes."""

    VLLM = "vllm"
    LAYER_SHARD = "layer-shard"
    SIM = "sim"


class Backend(StrEnum):
    """How an engine is run on its node."""

    NATIVE = "native"
    DOCKER = "docker"


class Pull(StrEnum):
    """When an image is fetched."""

    MISSING = "missing"
    ALWAYS = "always"
    NEVER = "never"


class DockerOptions(Record):
    """How the container is made, where "backend" is docker. Sizes as Docker writes them: "512m", "8g"."""

    network: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")] = "host"
    pull: Pull = Pull.MISSING
    entrypoint: tuple[str, ...] | None = None  # None: the image's own, or `vllm serve` where it has none
    ipc: Annotated[str, StringConstraints(pattern=r"^(private|host)$")] = "private"
    shm_size: Annotated[str, StringConstraints(pattern=SIZE)] = "8g"  # of its workers; unused if ipc is host
    memory: Annotated[str, StringConstraints(pattern=SIZE)] | None = None  # what it may use at most, swap included
    cpus: float | None = Field(default=None, gt=0, le=4096, allow_inf_nan=False)
    ulimits: dict[Annotated[str, StringConstraints(pattern=r"^[a-z]{2,16}$")], int] = Field(default_factory=dict)
    mounts: tuple[str, ...] = ()  # "/on/the/node:/in/the/container", read-only unless ":rw" follows
    user: Annotated[str, StringConstraints(pattern=r"^[a-z0-9_][a-z0-9_-]*(:[a-z0-9_][a-z0-9_-]*)?$")] | None = None
    kv_events: bool = True  # False for an image that has none

    @field_validator("network")
    @classmethod
    def _has_a_port(cls, network: str) -> str:
        if network == "none":
            raise ValueError("network none leaves the gateway no way to the engine; use host or bridge")
        return network

    @field_validator("mounts")
    @classmethod
    def _absolute(cls, mounts: tuple[str, ...]) -> tuple[str, ...]:
        for text in mounts:
            source, _, rest = text.partition(":")
            target, _, mode = rest.partition(":")
            if mode not in ("", "ro", "rw") or not (is_plain_path(source) and is_plain_path(target)):
                raise ValueError(f"{text!r} must be /on/the/node:/in/the/container, with :ro or :rw at most")
        return mounts


def is_plain_path(path: str) -> bool:
    """Absolute, and it means what it says."""
    return path.startswith("/") and path != "/" and "\0" not in path and ".." not in path.split("/")


class Strategy(StrEnum):
    """Which of the nodes that fit a replica goes to."""

    SPREAD = "spread"  # away from its like, then to the node with the least on it
    PACK = "pack"  # where the fewest devices stay free, so that large replicas find whole nodes


class RoutingPolicy(StrEnum):
    """Which of a deployment's replicas a request goes to."""

    KV = "kv"  # where it costs the least time, by what each one holds, has to do and can do
    SESSION = "session"  # where its session was before; a new one to whoever is least loaded
    LEAST_LOADED = "least-loaded"
    ROUND_ROBIN = "round-robin"
    RANDOM = "random"


class ReplicaRole(StrEnum):
    """Which part of a request its replicas compute."""

    BOTH = "both"
    PREFILL = "prefill"  # prompts only, for those that decode the same model
    DECODE = "decode"  # answers; a prompt too where that is quicker, or nobody else can


class RolloutPolicy(Record):
    """How replicas are replaced when the deployment changes, or must leave their node."""

    max_surge: int = Field(default=1, ge=0, le=1024)  # replicas above the wanted number, meanwhile
    max_unavailable: int = Field(default=0, ge=0, le=1024)  # below it; where there is no room to surge, one is taken
    deadline_seconds: int = Field(default=900, ge=1, le=86_400)  # without progress; then the last good one comes back
    new_generation_percent: int | None = Field(default=None, ge=0, le=100)
    """Of the requests, while replicas of two generations answer; None: as they are busy."""


class DeploymentSpec(Record):
    """What a user wants to run. The fields of POST /v1/deployments, without the name."""

    model: Annotated[str, StringConstraints(min_length=1, max_length=256, pattern=r"^[A-Za-z0-9][A-Za-z0-9._/:-]*$")]
    engine: EngineKind = EngineKind.VLLM
    engine_version: Version | None = None  # None: the newest installed one that fits
    backend: Backend = Backend.NATIVE
    docker_image: Annotated[str, StringConstraints(max_length=512, pattern=IMAGE)] | None = None
    docker: DockerOptions | None = None
    model_path: str | None = None
    device: Annotated[str, StringConstraints(pattern=DEVICES)] = "auto"
    tensor_parallel_size: int | None = Field(default=None, ge=1, le=1024)
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    replicas: int = Field(default=1, ge=0, le=1024)
    dtype: Annotated[str, StringConstraints(pattern=r"^(auto|float32|float16|bfloat16)$")] = "auto"
    quantization: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")] | None = None
    max_model_len: int | None = Field(default=None, ge=16, le=100_000_000)
    engine_args: dict[str, Any] = Field(default_factory=dict)
    env: dict[EnvName, str] = Field(default_factory=dict)
    priority: int = Field(default=0, ge=-1000, le=1000)  # a higher one may take the devices of a lower one
    node_selector: dict[LabelKey, LabelValue] = Field(default_factory=dict)  # labels that its nodes must have
    anti_affinity: tuple[Name, ...] = ()  # deployments, itself perhaps, that no node of its replicas may also run
    strategy: Strategy = Strategy.SPREAD
    rollout: RolloutPolicy = Field(default_factory=RolloutPolicy)
    routing: RoutingPolicy = RoutingPolicy.KV
    role: ReplicaRole = ReplicaRole.BOTH  # the router's business: no engine is restarted for it
    pipeline: PipelineOptions | None = None  # each replica's layers lie on several nodes

    @property
    def docker_options(self) -> DockerOptions:
        """With the defaults where none are given."""
        return self.docker or DockerOptions()

    @field_validator("model_path")
    @classmethod
    def _absolute(cls, path: str | None) -> str | None:
        if path is not None and not is_plain_path(path):
            raise ValueError("must be an absolute path on the node, without '..'")
        return path

    @field_validator("env")
    @classmethod
    def _no_secrets(cls, env: dict[str, str]) -> dict[str, str]:
        for name in env:
            if looks_secret(name):
                raise ValueError(f"{name} looks like a secret and would be stored readably; set it for the worker")
            if "\0" in env[name]:
                raise ValueError(f"{name} holds a NUL character, which no process can be given")
        return env

    @field_validator("engine_args")
    @classmethod
    def _plain(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        _check_plain(arguments)
        return arguments

    @model_validator(mode="after")
    def _simulated_devices_need_sim(self) -> DeploymentSpec:
        if self.device.startswith("sim:") and self.engine is not EngineKind.SIM:
            raise ValueError(f'device {self.device} is simulated; it needs "engine": "sim"')
        return self

    @model_validator(mode="after")
    def _stages_need_layer_shard(self) -> DeploymentSpec:
        if self.pipeline is not None and (self.engine is not EngineKind.LAYER_SHARD or self.backend is Backend.DOCKER):
            raise ValueError('pipeline needs "engine": "layer-shard", run natively')
        return self

    @model_validator(mode="after")
    def _image_needs_docker(self) -> DeploymentSpec:
        for field, value in (("docker_image", self.docker_image), ("docker", self.docker)):
            if value is not None and self.backend is not Backend.DOCKER:
                raise ValueError(f'{field} needs "backend": "docker"')
        return self
