"""Which installed engine runs a replica on given devices, or why none can. Pure: scheduler and agent both ask."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from deepinfer.engine_environments.compatibility import FILE_NAME, Line
from deepinfer.fleet.resources import ANY_ACCELERATOR, Device, InstalledEngine
from deepinfer.fleet.spec import DeploymentSpec, EngineKind

_INSTALLABLE = (EngineKind.VLLM,)


@dataclass(frozen=True, slots=True)
class NoEngine:
    """Why not, in words that follow the node's name."""

    reason: str
    refused_by_rule: bool = False  # then installing the same again will not help


def chosen_engine(
    spec: DeploymentSpec, installed: Sequence[InstalledEngine], devices: Sequence[Device], lines: Sequence[Line]
) -> InstalledEngine | NoEngine:
    """The newest that fits the spec, was built for these devices, and is refused by no line."""
    accelerator = accelerator_of(devices)
    fitting = [
        engine for engine in newest_first(spec, installed) if engine.accelerator in (accelerator, ANY_ACCELERATOR)
    ]
    if not fitting:
        return NoEngine(not_installed(spec, installed, accelerator))
    refused = []
    for engine in fitting:
        found = _refusing(spec, engine, devices, lines)
        if found is None:
            return engine
        refused.append(_refusal(engine, *found))
    return NoEngine(refused[0], refused_by_rule=True)


def newest_first(spec: DeploymentSpec, installed: Iterable[InstalledEngine]) -> list[InstalledEngine]:
    """The installed engines that the spec allows."""
    wanted = None if spec.engine_version is None else Version(spec.engine_version)
    allowed = [e for e in installed if e.kind is spec.engine and (wanted is None or Version(e.version) == wanted)]
    return sorted(allowed, key=lambda engine: Version(engine.version), reverse=True)


def accelerator_of(devices: Iterable[Device]) -> str:
    return "cuda" if any(device.kind == "cuda" for device in devices) else "cpu"


def not_installed(spec: DeploymentSpec, installed: Iterable[InstalledEngine], accelerator: str) -> str:
    """The sentence, with the command that helps where there is one."""
    wanted = f'engine "{spec.engine}"' + (f" {spec.engine_version}" if spec.engine_version else "")
    if spec.engine not in _INSTALLABLE:
        names = ", ".join(engine.kind for engine in installed) or "none"
        return f"{wanted} is not installed there (installed: {names})"
    there = ", ".join(f"{e.version} for {e.accelerator}" for e in installed if e.kind is spec.engine)
    command = f"deepinfer engine install {spec.engine}" + (" --cpu" if accelerator == "cpu" else "")
    if spec.engine_version:
        command += f" --version {spec.engine_version}"
    fitting = f" for {accelerator} (there is {there})" if there else ""
    return f"{wanted} is not installed there{fitting}; run `{command}` on that node"


def refusing_line(engine: InstalledEngine, lines: Sequence[Line]) -> Line | None:
    """The line that refuses this engine whatever it is asked for; to be known before it is installed."""
    anything = DeploymentSpec(model="any", engine=engine.kind)
    found = _refusing(anything, engine, (), lines)
    return found[0] if found else None


def quoted(line: Line) -> str:
    return f"{line.rule.because} ({FILE_NAME} line {line.number}: {line.text})"


def _refusing(
    spec: DeploymentSpec, engine: InstalledEngine, devices: Sequence[Device], lines: Sequence[Line]
) -> tuple[Line, Device | None] | None:
    for line in lines:
        for device in devices or (None,):
            if _matches(line, spec, engine, device):
                return line, device
    return None


def _matches(line: Line, spec: DeploymentSpec, engine: InstalledEngine, device: Device | None) -> bool:
    rule = line.rule
    capability = device.compute_capability if device else None
    return (
        rule.refuse is engine.kind
        and _contains(rule.versions, engine.version)
        and rule.accelerator in (None, engine.accelerator)
        and (not rule.capability or (capability is not None and _contains(rule.capability, capability)))
        and (not rule.dtype or spec.dtype in rule.dtype)
        and (not rule.quantization or spec.quantization in rule.quantization)
    )


def _contains(specifier: str, version: str) -> bool:
    return SpecifierSet(specifier).contains(Version(version), prereleases=True)


def _refusal(engine: InstalledEngine, line: Line, device: Device | None) -> str:
    capability = f" of compute capability {device.compute_capability}" if device and device.compute_capability else ""
    where = f" on {device.id} ({device.name}{capability})" if device else ""
    return f"cannot run {engine.kind} {engine.version}{where}: {quoted(line)}"
