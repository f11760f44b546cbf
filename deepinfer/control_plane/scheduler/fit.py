"""Whether a node can take a replica, and on which devices. Pure; a refusal is a sentence a person can act on.

What an engine cannot do is packaged data (`engine_environments.compatibility`): the same wherever and whenever it is
read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from deepinfer.engine_environments.choice import NoEngine, chosen_engine, newest_first, not_installed
from deepinfer.engine_environments.compatibility import lines
from deepinfer.fleet.parallelism import devices_needed, named_devices
from deepinfer.fleet.resource import Record
from deepinfer.fleet.resources import Node
from deepinfer.fleet.spec import Backend, DeploymentSpec, EngineKind

CPU = ("cpu",)


@dataclass(frozen=True, slots=True)
class NoFit:
    """Why not, in words that follow the node's name."""

    reason: str


_NO_ENGINES_BUSINESS = {
    *("replicas", "priority", "node_selector", "anti_affinity", "strategy", "rollout", "routing", "role"),
    "pipeline",  # but for whether there is one: which stages there are is told to a head that runs
}
_OF_THE_ENGINE = tuple(field for field in DeploymentSpec.model_fields if field not in _NO_ENGINES_BUSINESS)


def same_engine(one: DeploymentSpec, other: DeploymentSpec) -> bool:
    """Whether a running engine serves both: how many replicas there are, and where, is not its business."""
    if (one.pipeline is None) != (other.pipeline is None):
        return False
    return _same_extras(one, other) and all(
        _alike(getattr(one, field), getattr(other, field)) for field in _OF_THE_ENGINE
    )


def _alike(one: Any, other: Any) -> bool:
    if isinstance(one, Record) and isinstance(other, Record):
        fields = type(one).model_fields
        return _same_extras(one, other) and all(_alike(getattr(one, f), getattr(other, f)) for f in fields)
    return bool(one == other)


def _same_extras(one: Record, other: Record) -> bool:
    """A newer version's field that only one of them has is no reason to end an engine: the newer leader writes its
    default into a placement of a deployment that was stored without it. Where it means more, that leader will see."""
    ours, theirs = one.model_extra or {}, other.model_extra or {}
    return all(ours[field] == theirs[field] for field in ours.keys() & theirs.keys())


def devices_for(spec: DeploymentSpec, node: Node, taken: Mapping[str, str]) -> tuple[str, ...] | NoFit:
    """The devices a new replica gets on `node`. `taken` maps its exclusive devices to the placements that hold them."""
    if spec.backend is Backend.DOCKER:
        return _for_a_container(spec, node, taken)
    if not newest_first(spec, node.engines):
        wanted = "cuda" if spec.device != "cpu" and _has(node, "cuda") else "cpu"
        return NoFit(not_installed(spec, node.engines, wanted))
    if spec.device == "auto":
        return _free_devices(spec, node, taken)
    wanted_devices = CPU if spec.device == "cpu" else named_devices(spec)
    return _exactly(wanted_devices, node, taken) or _refused_on(wanted_devices, spec, node) or wanted_devices


class Offer:
    """Of nodes that are alike; one is only equal to itself, which is known at once."""


def offer_of(node: Node) -> Offer:
    """The very same one for all that have the same to give."""
    return _known_offer((node.devices, node.engines, node.containers))


@lru_cache(maxsize=1 << 12)
def _known_offer(offered: tuple[Any, ...]) -> Offer:
    return Offer()


def fitting_devices(spec: DeploymentSpec, node: Node, taken: Mapping[str, str], offer: Offer) -> tuple[str, ...] | None:
    """The same without the words, and fast where many nodes are alike."""
    wants = (
        *(spec.engine, spec.engine_version, spec.backend, spec.device, spec.dtype, spec.quantization),
        devices_needed(spec),
    )
    return _remembered(_Question(wants, offer, frozenset(taken), spec, node))


def device_refusal(spec: DeploymentSpec, node: Node, device: str, taken: Mapping[str, str]) -> str:
    """Why one device alone cannot be among a new replica's; empty if it can."""
    if device in taken:
        return f"is taken by {taken[device]}"
    named = CPU if spec.device == "cpu" else named_devices(spec)
    if spec.device != "auto" and device not in named:
        return f"{device} is not asked for, but {', '.join(named)}"
    if spec.backend is Backend.DOCKER:
        return "is simulated, and containers are not" if device.startswith("sim:") else ""
    refused = _refused_on((device,), spec, node)
    return refused.reason if refused else ""


@dataclass(frozen=True, slots=True)
class _Question:
    """Two are equal when their answers are."""

    wants: tuple[Any, ...]
    offer: Offer
    taken: frozenset[str]
    spec: DeploymentSpec = field(compare=False)
    node: Node = field(compare=False)


@lru_cache(maxsize=1 << 14)
def _remembered(question: _Question) -> tuple[str, ...] | None:
    found = devices_for(question.spec, question.node, dict.fromkeys(question.taken, ""))
    return None if isinstance(found, NoFit) else found


def still_fits(spec: DeploymentSpec, node: Node, devices: tuple[str, ...]) -> bool:
    """Whether a replica that holds `devices` of `node` may stay on them with this spec."""
    if not set(devices) <= {device.id for device in node.devices} or not _runs_on(spec, node, devices):
        return False
    if spec.device == "cpu":
        return devices == CPU
    if spec.device == "auto":
        return len(devices) == devices_needed(spec)
    return devices == named_devices(spec)


def _runs_on(spec: DeploymentSpec, node: Node, devices: tuple[str, ...]) -> bool:
    if spec.backend is Backend.DOCKER:
        return not _without_containers(node) and not any(device.startswith("sim:") for device in devices)
    return not _refused_on(devices, spec, node)


def exclusive(devices: tuple[str, ...]) -> tuple[str, ...]:
    """The devices that one placement holds alone; the cpu is shared."""
    return () if devices == CPU else tuple([device for device in devices if device not in CPU])


def _for_a_container(spec: DeploymentSpec, node: Node, taken: Mapping[str, str]) -> tuple[str, ...] | NoFit:
    """What the image needs of a device only the image knows: any free ones of one kind will do."""
    if refused := _without_containers(node):
        return refused
    if spec.device != "auto":
        wanted = CPU if spec.device == "cpu" else named_devices(spec)
        return _exactly(wanted, node, taken) or wanted
    needed = devices_needed(spec)
    accelerators = [device for device in node.devices if device.kind not in ("cpu", "sim")]
    free: dict[str, list[str]] = {}
    for device in accelerators:
        if device.id not in taken:
            free.setdefault(device.kind, []).append(device.id)
    for devices in free.values():
        if len(devices) >= needed:
            return tuple(devices[:needed])
    if not accelerators and needed == 1 and _has_cpu(node):
        return CPU
    most = max(map(len, free.values()), default=0)
    holders = _holders([device.id for device in accelerators], taken)
    return NoFit(f"has {most} free accelerators of the {needed} needed{holders}")


def _without_containers(node: Node) -> NoFit | None:
    if node.containers is None:
        return NoFit("has not told whether it has Docker")
    return NoFit(f"cannot run containers: {node.containers.trouble}") if node.containers.trouble else None


def _holders(offered: Iterable[str], taken: Mapping[str, str]) -> str:
    return "".join(f"; {device} is taken by {taken[device]}" for device in offered if device in taken)


def _free_devices(spec: DeploymentSpec, node: Node, taken: Mapping[str, str]) -> tuple[str, ...] | NoFit:
    """Accelerators before the cpu. One engine runs the replica, so all its devices must suit the same one."""
    needed, kind = devices_needed(spec), _accelerator(spec, node)
    offered = [device.id for device in node.devices if device.kind == kind]
    free = [device for device in offered if device not in taken]
    for engine in newest_first(spec, node.engines):
        only = node.model_copy(update={"engines": (engine,)})
        fitting = [device for device in free if not _refused_on((device,), spec, only)]
        if len(fitting) >= needed:
            return tuple(fitting[:needed])
    on_cpu = _refused_on(CPU, spec, node) if needed == 1 and _has_cpu(node) else NoFit("")
    if on_cpu is None:
        return CPU
    reasons = [verdict.reason for device in free if (verdict := _refused_on((device,), spec, node))]
    if len(free) < needed and (offered or not on_cpu.reason):
        count = f"has {len(free)} free {kind.upper()} devices of the {needed} needed"
        reasons.insert(0, f"{count}{_holders(offered, taken)}")
    return NoFit("; ".join(dict.fromkeys(filter(None, [*reasons, on_cpu.reason]))))


def _refused_on(devices: tuple[str, ...], spec: DeploymentSpec, node: Node) -> NoFit | None:
    """Why no engine of the node runs it on these."""
    known = [device for device in node.devices if device.id in devices]
    chosen = chosen_engine(spec, node.engines, known, lines())
    return NoFit(chosen.reason) if isinstance(chosen, NoEngine) else None


def _exactly(wanted: tuple[str, ...], node: Node, taken: Mapping[str, str]) -> NoFit | None:
    """Why the node cannot give just these."""
    offered = [device.id for device in node.devices]
    for device in wanted:
        if device not in offered and device in CPU:
            return NoFit("offers no cpu device")
        if device not in offered:
            return NoFit(f"has no device {device} (it has {', '.join(offered) or 'none'})")
        if device in taken:
            return NoFit(f"device {device} is taken by {taken[device]}")
    return None


def _accelerator(spec: DeploymentSpec, node: Node) -> str:
    """A simulated engine takes simulated devices where a node has them."""
    return "sim" if spec.engine is EngineKind.SIM and _has(node, "sim") else "cuda"


def _has(node: Node, kind: str) -> bool:
    return any(device.kind == kind for device in node.devices)


def _has_cpu(node: Node) -> bool:
    return _has(node, "cpu")
