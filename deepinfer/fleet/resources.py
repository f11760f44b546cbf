"""The vocabulary every process shares: what a user wants, where it goes, what was seen of it.

Frozen values that cross a process or a disk, readable as JSON. They import nothing of the other processes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any

from packaging import version
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

NAME = r"^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$"
Name = Annotated[str, StringConstraints(pattern=NAME)]
DEVICES = r"^(auto|cpu|([a-z]{2,8}:)?\d+(,([a-z]{2,8}:)?\d+)*)$"
IMAGE = (
    r"^[a-z0-9][A-Za-z0-9._-]*(:\d{1,5})?(/[A-Za-z0-9._-]+)*"
    r"(:[A-Za-z0-9_][A-Za-z0-9._-]{0,127})?(@sha256:[0-9a-f]{64})?$"
)
SIZE = r"^[1-9]\d{0,11}[bkmg]?$"
EnvName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,127}$")]
_SECRET = re.compile(r"(TOKEN(?!IZERS)|SECRET|PASSW|CREDENTIAL|API_?KEY|PRIVATE_?KEY)", re.IGNORECASE)


def _comparable(text: str) -> str:
    """What is not a version must not get as far as the scheduler, which compares them all."""
    try:
        version.Version(text)
    except version.InvalidVersion as error:
        raise ValueError(f"{text} is not a version, such as 0.32.0") from error
    return text


Version = Annotated[str, StringConstraints(pattern=r"^\d[A-Za-z0-9.+]{0,63}$"), AfterValidator(_comparable)]


def looks_secret(variable: str) -> bool:
    """By its name. What does must neither be stored readably nor reach an engine."""
    return _SECRET.search(variable) is not None


def without_secrets(variables: Mapping[str, str]) -> dict[str, str]:
    """What an engine may inherit of an environment."""
    return {name: value for name, value in variables.items() if not looks_secret(name)}


class Resource(BaseModel):
    """A frozen value; an unknown field is a typo and is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    def to_json(self) -> bytes:
        return self.model_dump_json(exclude_none=True).encode()


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


class DockerOptions(Resource):
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


class Intent(StrEnum):
    """What a placement should do (desired)."""

    SERVE = "serve"
    DRAIN = "drain"  # finish what runs, then stop and be forgotten


class Phase(StrEnum):
    """What an engine was last seen doing (observed)."""

    PREPARING = "preparing"  # its model's files are fetched or converted
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STOPPED = "stopped"
    RESTARTING = "restarting"  # it was ready, broke, and is started again
    FAILED = "failed"  # it never became ready; the message says whether it is tried again


class DeploymentSpec(Resource):
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
        return env

    @model_validator(mode="after")
    def _simulated_devices_need_sim(self) -> DeploymentSpec:
        if self.device.startswith("sim:") and self.engine is not EngineKind.SIM:
            raise ValueError(f'device {self.device} is simulated; it needs "engine": "sim"')
        return self

    @model_validator(mode="after")
    def _image_needs_docker(self) -> DeploymentSpec:
        for field, value in (("docker_image", self.docker_image), ("docker", self.docker)):
            if value is not None and self.backend is not Backend.DOCKER:
                raise ValueError(f'{field} needs "backend": "docker"')
        return self


class Deployment(Resource):
    """A spec with a name. Every change of the spec is a new generation."""

    name: Name
    uid: Annotated[str, StringConstraints(pattern=r"^[a-z0-9]{5}$")]  # tells a re-created deployment from the old one
    generation: int = Field(ge=1)
    created_at: str  # ISO 8601, UTC; shown to people, never compared
    spec: DeploymentSpec


class Device(Resource):
    """One thing a node can compute on."""

    id: str  # "cpu", "cuda:0", "sim:0"
    kind: str  # "cpu", "cuda", "sim"
    name: str
    memory_bytes: int
    compute_capability: Version | None = None  # of CUDA devices, such as "8.9"


ANY_ACCELERATOR = "any"


class InstalledEngine(Resource):
    """An engine that can be started on a node."""

    kind: EngineKind
    version: Version
    accelerator: str  # the kind of device it was built for: "cpu", "cuda", or "any"


class ContainerRuntime(Resource):
    """What runs containers on a node: Docker, or what speaks like it."""

    version: str = ""  # "" until it has answered
    trouble: str = ""  # why it is of no use now
    warning: str = ""  # what its set-up will cost one day


class Node(Resource):
    """One machine's agent and what it offers. Its key lives under the agent's lease."""

    name: Name
    instance: str  # of the agent's state folder: tells a restarted agent from a second one with the same name
    agent_endpoint: str  # host:port of its gRPC service (logs)
    devices: tuple[Device, ...]
    engines: tuple[InstalledEngine, ...]  # that can be started here
    containers: ContainerRuntime | None = None
    version: str


class Placement(Resource):
    """A replica bound to devices of a node. An engine of an older epoch is never routed to."""

    id: str  # DEPLOYMENT-UID-INDEX
    epoch: int = Field(ge=1)
    deployment: Name
    generation: int
    replica: int = Field(ge=0)
    node: Name
    devices: tuple[str, ...]
    intent: Intent = Intent.SERVE
    spec: DeploymentSpec


class ReplicaStatus(Resource):
    """What the agent saw of a placement. Not under the lease: when an agent dies, its engines go on serving."""

    id: str
    epoch: int
    node: Name
    phase: Phase
    message: str = ""  # progress, or why it failed and what to do
    endpoint: str | None = None  # host:port of the shim
    pid: int | None = None
    restarts: int = 0
    memory_bytes: int | None = None  # held by the engine, as it reports


class Refusal(Resource):
    """Why replicas of a deployment have no place."""

    deployment: Name
    missing: int  # replicas without a place
    reasons: dict[str, str]  # node -> why not
