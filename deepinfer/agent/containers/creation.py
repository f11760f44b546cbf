"""A placement as `docker create` wants it. Pure: every path and number is given; nothing is looked up.

Never privileged, never with Docker's own socket; nothing restarts it but the agent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from docker.types import DeviceRequest, LogConfig, Mount, Ulimit

from deepinfer.agent.containers.device_access import DeviceAccess
from deepinfer.agent.containers.server_command import Command
from deepinfer.agent.launching import Mark
from deepinfer.fleet import oom_score
from deepinfer.fleet.spec import DockerOptions

PLACEMENT, EPOCH, INSTANCE = "deepinfer.placement", "deepinfer.epoch", "deepinfer.instance"
PORT, KV_EVENTS, API_KEY = "deepinfer.port", "deepinfer.kv-events", "VLLM_API_KEY"
BRIDGE_PORT = 8000
"""Where the server listens in a network of its container's own."""
_LOG = LogConfig(type=LogConfig.types.JSON, config={"max-size": "64m", "max-file": "2"})


@dataclass(frozen=True, slots=True)
class Making:
    """What a container is made of, besides its placement's options."""

    image: str  # its id: what was looked at is what is run
    mark: Mark
    command: Command
    port: int | None  # on the node; None: Docker chooses one
    read_only: tuple[Path, ...] = ()  # the model and what its files point at, under the same paths
    sockets: Path | None = None  # the folder of its KV events
    hub_cache: Path | None = None
    api_key: str = field(default="", repr=False)
    groups: tuple[int, ...] = ()  # of the node, by number
    env: Mapping[str, str] = field(default_factory=dict)
    access: DeviceAccess = field(default_factory=DeviceAccess)


def container_name(mark: Mark) -> str:
    """One for each epoch: Docker itself refuses a second one."""
    return f"deepinfer-{mark.placement}-{mark.epoch}-{mark.instance[:6]}"


def mark_in(labels: Mapping[str, str]) -> Mark | None:
    """Whose a container is."""
    return Mark.parse(":".join(labels.get(name, "") for name in (PLACEMENT, EPOCH, INSTANCE)))


def creation(making: Making, options: DockerOptions) -> dict[str, Any]:
    """Keyword arguments of docker's `containers.create`."""
    access = making.access
    return {
        "image": making.image,
        "name": container_name(making.mark),
        "entrypoint": None if making.command.entrypoint is None else list(making.command.entrypoint),
        "command": list(making.command.words),
        "labels": _labels(making),
        "environment": _environment(making),
        "mounts": _mounts(making, options),
        "user": options.user,
        "devices": [f"{path}:{path}:rwm" for path in access.devices],
        "device_requests": [_request(access)] if access.request else None,
        "group_add": list(map(str, making.groups)),
        "runtime": access.runtime or None,
        "security_opt": ["no-new-privileges", *access.security],
        "ipc_mode": options.ipc,
        "shm_size": options.shm_size if options.ipc == "private" else None,
        "mem_limit": options.memory,
        "memswap_limit": options.memory,
        "nano_cpus": None if options.cpus is None else round(options.cpus * 1e9),
        "ulimits": [Ulimit(name=name, soft=limit, hard=limit) for name, limit in options.ulimits.items()],
        "oom_score_adj": oom_score.ENGINE,
        "restart_policy": {"Name": "no"},
        "log_config": _LOG,
        **_network(making, options),
    }


def _labels(making: Making) -> dict[str, str]:
    mark = making.mark
    labels = {PLACEMENT: mark.placement, EPOCH: str(mark.epoch), INSTANCE: mark.instance}
    if making.port is not None:
        labels[PORT] = str(making.port)
    if making.sockets is not None:
        labels[KV_EVENTS] = str(making.sockets)
    return labels


def _environment(making: Making) -> dict[str, str]:
    """The user's own wins over what is only a default."""
    defaults = {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}  # the files are there, or it shall say so
    if making.hub_cache is not None:
        defaults["HF_HUB_CACHE"] = str(making.hub_cache)
    return defaults | dict(making.env) | making.access.env | {API_KEY: making.api_key}


def _mounts(making: Making, options: DockerOptions) -> list[Mount]:
    """By `--mount`, not `-v`: a source that is missing is an error and not a new folder of root's."""
    same = [*making.read_only, *([making.hub_cache] if making.hub_cache else [])]
    mounts = [Mount(str(path), str(path), type="bind", read_only=True) for path in dict.fromkeys(same)]
    mounts += [Mount(path, path, type="bind", read_only=True) for path in making.access.mounts]
    if making.sockets is not None:
        mounts.append(Mount(str(making.sockets), str(making.sockets), type="bind"))
    for text in options.mounts:
        source, target, *mode = text.split(":")
        mounts.append(Mount(target, source, type="bind", read_only=mode != ["rw"]))
    return mounts


def _request(access: DeviceAccess) -> DeviceRequest:
    return DeviceRequest(driver=access.request, device_ids=list(access.request_ids), capabilities=[["gpu"]])


def _network(making: Making, options: DockerOptions) -> dict[str, Any]:
    """Only this machine reaches its port."""
    if options.network == "host":
        return {"network_mode": "host"}
    return {"network": options.network, "ports": {f"{BRIDGE_PORT}/tcp": ("127.0.0.1", None)}}
