"""The devices of this node."""

from __future__ import annotations

import logging
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from deepinfer.fleet.nvidia import nvidia_gpus
from deepinfer.fleet.resources import Device

log = logging.getLogger(__name__)


def devices_of_this_node(environment: Mapping[str, str]) -> tuple[Device, ...]:
    """The CPU, and every GPU that the agent's own CUDA_VISIBLE_DEVICES leaves visible."""
    return (_cpu(), *nvidia_gpus(environment.get("CUDA_VISIBLE_DEVICES")))


def capped(devices: Sequence[Device], max_vram_mb: int | None) -> tuple[Device, ...]:
    """As if none had more memory than that, so that one machine can stand for several smaller ones."""
    if max_vram_mb is None:
        return tuple(devices)
    most = max_vram_mb * 10**6
    return tuple(device.model_copy(update={"memory_bytes": min(device.memory_bytes, most)}) for device in devices)


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
