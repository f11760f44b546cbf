"""How a container gets at devices: `configs/container_devices.toml`, filled in for the devices of one placement."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from importlib.resources import files

from pydantic import Field

from deepinfer.fleet.errors import EngineWillNotStart
from deepinfer.fleet.resource import Resource

FILE_NAME = "container_devices.toml"


class DeviceAccess(Resource):
    """Of one kind of devices; with `filled_in`, of some devices."""

    request: str = ""
    request_ids: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    mounts: tuple[str, ...] = ()
    env: dict[str, str] = Field(default_factory=dict)
    runtime: str = ""
    security: tuple[str, ...] = ()


def known_access() -> Mapping[str, DeviceAccess]:
    """By kind. Read anew each time: it is one small file, and a container is made rarely."""
    entries = tomllib.loads((files("deepinfer") / "configs" / FILE_NAME).read_text())
    return {kind: DeviceAccess.model_validate(entry) for kind, entry in entries.items()}


def access_to(devices: Sequence[str], known: Mapping[str, DeviceAccess]) -> DeviceAccess:
    """For devices of one kind, as in ("cuda:0", "cuda:1"). Pure. Raises `EngineWillNotStart` for an unknown kind."""
    named = [device.partition(":") for device in devices if device != "cpu"]
    if not named:
        return DeviceAccess()
    kind, ids = named[0][0], [number for _, _, number in named]
    if kind not in known:
        raise EngineWillNotStart(
            f"Containers cannot get devices of kind {kind}; configs/{FILE_NAME} knows {', '.join(known)}."
        )
    access = known[kind]
    return access.model_copy(
        update={
            "request_ids": tuple(ids) if access.request else (),
            "devices": tuple(dict.fromkeys(path.format(id=number) for path in access.devices for number in ids)),
            "env": {name: value.format(ids=",".join(ids)) for name, value in access.env.items()},
        }
    )
