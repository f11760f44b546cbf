"""Configuration: one TOML file for both processes, parsed once into frozen values. An unknown key stops the start."""

from __future__ import annotations

import tomllib
from pathlib import Path

from pydantic import Field, ValidationError

from deepinfer.fleet.errors import DeepinferError
from deepinfer.fleet.places import data_dir
from deepinfer.fleet.resources import Resource


class InvalidConfig(DeepinferError):
    """The configuration file cannot be used."""


class EtcdConfig(Resource):
    """Without endpoints, `serve` uses the etcd on 127.0.0.1:`port`, and starts an embedded one if none answers."""

    endpoints: tuple[str, ...] = ()
    port: int = Field(default=2379, ge=1, le=65535)
    data_dir: Path = Field(default_factory=lambda: data_dir() / "etcd")

    @property
    def addresses(self) -> tuple[str, ...]:
        return self.endpoints or (f"127.0.0.1:{self.port}",)


class ServeConfig(Resource):
    """The control plane: gateway, router, scheduler, management API."""

    host: str = "127.0.0.1"
    port: int = Field(default=8082, ge=0, le=65535)


class WorkerConfig(Resource):
    """One node's agent."""

    state_dir: Path = Field(default_factory=lambda: data_dir() / "nodes")
    lease_seconds: int = Field(default=10, ge=2, le=600)
    start_timeout_seconds: float = Field(default=600, gt=0)
    drain_seconds: float = Field(default=30, ge=0)
    stall_seconds: float = Field(default=10, ge=0)  # without a token while requests wait for one; 0: never a stall
    container_mounts: tuple[Path, ...] = ()  # folders of this node that deployments may mount into containers
    simulated_devices: int = Field(default=0, ge=0, le=1024)  # "sim:0" and so on, for the engine sim


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
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise InvalidConfig(f"{path}: {wrong}.") from error
