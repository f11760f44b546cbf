"""Configuration: one TOML file for both processes, parsed once into frozen values. An unknown key stops the start."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, ValidationError, model_validator

from deepinfer.etcd.access import address_of
from deepinfer.fleet.errors import DeepinferError
from deepinfer.fleet.loopback import is_loopback
from deepinfer.fleet.places import data_dir
from deepinfer.fleet.resource import LabelKey, LabelValue, Resource


class InvalidConfig(DeepinferError):
    """The configuration file cannot be used."""


def _endpoint(text: str) -> str:
    address_of(text)
    return text


def _namespace(text: str) -> str:
    """Nothing of one fleet may lie where another one looks: below its `deepinfer/`."""
    segments = text.split("/")[1:]
    if text and not re.fullmatch(r"(/[A-Za-z0-9][A-Za-z0-9._-]*)+", text):
        raise ValueError(f'"{text}" is no namespace; write it like /team-a')
    if "deepinfer" in segments:
        raise ValueError(f'"{text}" lies among another fleet\'s keys; leave "deepinfer" out, it is added')
    return text


def _origin(text: str) -> str:
    """As browsers send it."""
    if text != "*" and not re.fullmatch(r"https?://[a-z0-9.\[\]:-]+", text):
        raise ValueError(f'"{text}" is no origin; write it in lower case, like https://chat.example.org')
    return text


def _domain(text: str) -> str:
    """As `host` or `host:port`; never an address, which could be one inside."""
    if not re.fullmatch(r"(?:[a-z0-9](?:[a-z0-9-]*[a-z0-9])?\.)+[a-z](?:[a-z0-9-]*[a-z0-9])?(?::[0-9]{1,5})?", text):
        raise ValueError(f'"{text}" is no domain; write it in lower case like images.example.com, with a port or none')
    return text


class EtcdConfig(Resource):
    """Without endpoints, `serve` uses the etcd on 127.0.0.1:`port`, and starts an embedded one if none answers."""

    endpoints: tuple[Annotated[str, AfterValidator(_endpoint)], ...] = ()
    namespace: Annotated[str, AfterValidator(_namespace)] = ""  # several fleets can share an etcd
    ca_file: Path | None = None  # whom to trust; the system's authorities if it is not given
    cert_file: Path | None = None  # what we show etcd of ourselves, with its key
    key_file: Path | None = None
    username: str | None = None
    password_file: Path | None = None
    port: int = Field(default=2379, ge=1, le=65535)
    data_dir: Path = Field(default_factory=lambda: data_dir() / "etcd")

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file belong together; give both or none")
        if (self.username is None) != (self.password_file is None):
            raise ValueError("username and password_file belong together; give both or none")
        if self.has_tls_files and not self.endpoints:
            raise ValueError("the embedded etcd has no TLS; name endpoints, or leave ca_file, cert_file, key_file out")
        plain = [endpoint for endpoint in self.endpoints if address_of(endpoint).tls is False]
        if self.has_tls_files and plain:
            raise ValueError(f"{plain[0]} is no TLS; write https://, or leave ca_file, cert_file and key_file out")
        return self

    @property
    def has_tls_files(self) -> bool:
        return (self.ca_file or self.cert_file) is not None

    @property
    def addresses(self) -> tuple[str, ...]:
        return self.endpoints or (f"127.0.0.1:{self.port}",)


MOST_GATEWAYS = 64


class FrontLimits(Resource):
    """What one client may cost the gateway before anything looks at what it wants."""

    max_connections: int = Field(default=10_000, ge=1)
    max_connections_per_client: int | None = Field(default=None, ge=1)  # none: 1,000, and any number from loopback
    header_seconds: float = Field(default=10, gt=0)  # for a request's line and headers
    body_seconds: float = Field(default=30, gt=0)  # without a byte of a body that is not whole
    write_seconds: float = Field(default=60, gt=0)  # in which a client takes nothing of an answer
    max_header_bytes: int = Field(default=32 << 10, ge=1 << 10)
    max_body_bytes: int = Field(default=16 << 20, ge=1 << 10)


class ServeConfig(FrontLimits):
    """The control plane: gateway, router, scheduler, management API."""

    host: str = "127.0.0.1"
    port: int = Field(default=8082, ge=0, le=65535)
    gateways: int = Field(default=1, ge=1, le=MOST_GATEWAYS)  # processes on the one port
    drain_seconds: float = Field(default=30, ge=0)  # for running answers when it is told to end
    allowed_media_domains: tuple[Annotated[str, AfterValidator(_domain)], ...] = ()  # engines may fetch from these
    node_grace_seconds: float = Field(default=60, ge=0)  # how long a node may be away before it is given up
    access_log: str = ""  # a file, or "-" for stdout; "": none
    tracing: bool = False  # OpenTelemetry's; also on where its own variables name an endpoint
    queue_seconds: float = Field(default=30, ge=0)  # who would wait longer for an engine is refused at once
    queue_requests: int = Field(default=4096, ge=0)  # that wait at most, of a model
    authentication: Literal["auto", "required", "off"] = "auto"  # auto: API keys are required unless host is loopback
    cors_origins: tuple[Annotated[str, AfterValidator(_origin)], ...] = ()  # whose web pages may use this server
    continue_streams: bool = True  # on another replica, when their engine dies

    @property
    def requires_keys(self) -> bool:
        return self.authentication == "required" or (self.authentication == "auto" and not is_loopback(self.host))


class WorkerConfig(Resource):
    """One node's agent."""

    state_dir: Path = Field(default_factory=lambda: data_dir() / "nodes")
    lease_seconds: int = Field(default=10, ge=2, le=600)
    start_timeout_seconds: float = Field(default=600, gt=0)
    drain_seconds: float = Field(default=30, ge=0)
    stall_seconds: float = Field(default=10, ge=0)  # without a token while requests wait for one; 0: never a stall
    container_mounts: tuple[Path, ...] = ()  # folders of this node that deployments may mount into containers
    model_roots: tuple[Path, ...] = ()  # folders that a model_path must lead into; empty: anywhere
    simulated_devices: int = Field(default=0, ge=0, le=1024)  # "sim:0" and so on, for the engine sim
    max_vram_mb: int | None = Field(default=None, ge=1)  # megabytes that each device offers at most; None: all it has
    labels: dict[LabelKey, LabelValue] = Field(default_factory=dict)  # for deployments that want certain nodes
    low_memory_share: float = Field(default=0.05, ge=0, lt=1)  # with less left, nothing new is started; 0: whatever
    low_disk_share: float = Field(default=0.05, ge=0, lt=1)
    low_disk_bytes: int = Field(default=1 << 30, ge=0)  # enough, however large the disk is
    pipeline_host: str = "127.0.0.1"  # where hosts of stages listen; other nodes' heads must reach it
    pipeline_key_file: Path = Field(default_factory=lambda: data_dir() / "pipeline.key")  # the same on all nodes
    drain_on_stop: bool = False  # at SIGTERM, wait until the control plane has moved everything away
    drain_deadline_seconds: float = Field(default=300, ge=0)


class Config(Resource):
    etcd: EtcdConfig = Field(default_factory=EtcdConfig)
    serve: ServeConfig = Field(default_factory=ServeConfig)
    worker: WorkerConfig = Field(default_factory=WorkerConfig)


def load_config(path: Path | None) -> Config:
    """The file's values over the defaults. Raises `InvalidConfig` naming the file and each wrong key."""
    if path is None:
        return Config()
    try:
        return Config.model_validate(tomllib.loads(path.read_text()))
    except OSError as error:
        raise InvalidConfig(f"{path} cannot be read: {error.strerror}.") from error
    except tomllib.TOMLDecodeError as error:
        raise InvalidConfig(f"{path} is not valid TOML: {error}.") from error
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {_message(e)}" for e in error.errors())
        raise InvalidConfig(f"{path}: {wrong}.") from error


def at_endpoints(etcd: EtcdConfig, endpoints: Sequence[str] | None) -> EtcdConfig:
    """As if the file named these, where --etcd does. Raises `InvalidConfig`."""
    if not endpoints:
        return etcd
    try:
        return EtcdConfig.model_validate({**etcd.model_dump(), "endpoints": tuple(endpoints)})
    except ValidationError as error:
        raise InvalidConfig(f"--etcd: {'; '.join(map(_message, error.errors()))}.") from error


def _message(error: Any) -> str:
    return str(error["msg"]).removeprefix("Value error, ")
