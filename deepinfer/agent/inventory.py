"""What this node offers: its devices, and the engines that can be started on them.

Heavy libraries are looked for, never imported: the agent stays small.
"""

from __future__ import annotations

import importlib.util
import logging
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from deepinfer.agent.nvml import with_nvml
from deepinfer.fleet.resources import Device, EngineKind

_NEEDED = {
    EngineKind.SIM: (),
    EngineKind.LAYER_SHARD: ("torch", "transformers", "safetensors"),
}

log = logging.getLogger(__name__)


def devices_of_this_node(environment: Mapping[str, str]) -> tuple[Device, ...]:
    """The CPU, and every GPU that the agent's own CUDA_VISIBLE_DEVICES leaves visible."""
    nothing: tuple[Device, ...] = ()
    return (_cpu(), *with_nvml(lambda nvml: _gpus(nvml, environment.get("CUDA_VISIBLE_DEVICES")), nothing))


def engines_of_this_node() -> tuple[EngineKind, ...]:
    return tuple(engine for engine, modules in _NEEDED.items() if all(map(importlib.util.find_spec, modules)))


def _cpu() -> Device:
    return Device(id="cpu", kind="cpu", name=_cpu_name(), memory_bytes=psutil.virtual_memory().total)


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError as error:
        log.debug("no /proc/cpuinfo: %s", error)
    return platform.processor() or platform.machine()


def _gpus(nvml: Any, visible: str | None) -> tuple[Device, ...]:
    return tuple(_gpu(nvml, index) for index in range(nvml.nvmlDeviceGetCount()) if _is_visible(index, visible))


def _gpu(nvml: Any, index: int) -> Device:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    name = nvml.nvmlDeviceGetName(handle)
    return Device(
        id=f"cuda:{index}",
        kind="cuda",
        name=name.decode() if isinstance(name, bytes) else name,
        memory_bytes=nvml.nvmlDeviceGetMemoryInfo(handle).total,
    )


def _is_visible(index: int, visible: str | None) -> bool:
    """Numbers only; devices named by UUID are not offered, since an engine is told its device by number."""
    return visible is None or str(index) in (part.strip() for part in visible.split(","))
