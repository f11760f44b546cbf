"""Whether a node can take a replica, and on which devices. Pure; a refusal is a sentence a person can act on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from deepinfer.fleet.resources import DeploymentSpec, EngineKind, Node

CPU = ("cpu",)


@dataclass(frozen=True, slots=True)
class NoFit:
    """Why not, in words that follow the node's name."""

    reason: str


def same_engine(one: DeploymentSpec, other: DeploymentSpec) -> bool:
    """Whether a running engine serves both: how many replicas there are is no engine's business."""
    return one.model_copy(update={"replicas": other.replicas}) == other


def devices_for(spec: DeploymentSpec, node: Node, taken: Mapping[str, str]) -> tuple[str, ...] | NoFit:
    """The devices a new replica gets on `node`. `taken` maps its exclusive devices to the placements that hold them."""
    if missing := _missing_engine(spec, node):
        return missing
    if spec.device == "cpu":
        return CPU if _has_cpu(node) else NoFit("offers no cpu device")
    if spec.device == "auto":
        return _free_devices(spec, node, taken)
    return _exactly(_named(spec.device), node, taken)


def still_fits(spec: DeploymentSpec, node: Node, devices: tuple[str, ...]) -> bool:
    """Whether a replica that holds `devices` of `node` may stay on them with this spec."""
    if _missing_engine(spec, node) or not set(devices) <= {device.id for device in node.devices}:
        return False
    if spec.device == "cpu":
        return devices == CPU
    if spec.device == "auto":
        return len(devices) == _count(spec)
    return devices == _named(spec.device)


def exclusive(devices: tuple[str, ...]) -> Iterator[str]:
    """The devices that one placement holds alone; the cpu is shared."""
    return (device for device in devices if device not in CPU)


def _missing_engine(spec: DeploymentSpec, node: Node) -> NoFit | None:
    if spec.engine in node.engines:
        return None
    installed = ", ".join(node.engines) or "none"
    return NoFit(f'engine "{spec.engine}" is not installed there (installed: {installed})')


def _free_devices(spec: DeploymentSpec, node: Node, taken: Mapping[str, str]) -> tuple[str, ...] | NoFit:
    kind = _accelerator(spec, node)
    offered = [device.id for device in node.devices if device.kind == kind]
    free = [device for device in offered if device not in taken]
    if len(free) >= _count(spec):
        return tuple(free[: _count(spec)])
    if _count(spec) == 1 and _has_cpu(node):
        return CPU
    holders = "".join(f"; {device} is taken by {taken[device]}" for device in offered if device in taken)
    return NoFit(f"has {len(free)} free {kind.upper()} devices of the {_count(spec)} needed{holders}")


def _exactly(wanted: tuple[str, ...], node: Node, taken: Mapping[str, str]) -> tuple[str, ...] | NoFit:
    offered = [device.id for device in node.devices]
    for device in wanted:
        if device not in offered:
            return NoFit(f"has no device {device} (it has {', '.join(offered) or 'none'})")
        if device in taken:
            return NoFit(f"device {device} is taken by {taken[device]}")
    return wanted


def _accelerator(spec: DeploymentSpec, node: Node) -> str:
    """A simulated engine takes simulated devices where a node has them."""
    return "sim" if spec.engine is EngineKind.SIM and any(device.kind == "sim" for device in node.devices) else "cuda"


def _named(device: str) -> tuple[str, ...]:
    if device.startswith("sim:"):
        return tuple(device.split(","))
    return tuple(f"cuda:{int(part.removeprefix('cuda:'))}" for part in device.split(","))


def _count(spec: DeploymentSpec) -> int:
    return spec.tensor_parallel_size or 1


def _has_cpu(node: Node) -> bool:
    return any(device.id == "cpu" for device in node.devices)
