"""Which processes hold a device now: asked of NVML for GPUs, of the kernel's locks for simulated devices."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import psutil

from deepinfer.agent.device_gate import Holder
from deepinfer.agent.launching import Mark
from deepinfer.agent.simulated_devices import DeviceLocks
from deepinfer.fleet.nvidia import with_nvml

_CUDA = "cuda:"

Owner = Callable[[psutil.Process], Mark | None]
"""Which of this agent's engines a process belongs to."""


def holders_of(devices: Sequence[str], locks: DeviceLocks, owner: Owner) -> list[Holder]:
    """Nobody holds the cpu."""
    gpus = [device for device in devices if device.startswith(_CUDA)]
    found: list[tuple[str, int, float]] = []
    if gpus:
        found = with_nvml(lambda nvml: list(_on_gpus(nvml, gpus)), found)
    for device in devices:
        pid = locks.holder(device) if device.startswith("sim:") else None
        if pid is not None:
            found.append((device, pid, 1.0))
    return [_holder(device, pid, share, owner) for device, pid, share in found]


def _on_gpus(nvml: Any, devices: Sequence[str]) -> Iterator[tuple[str, int, float]]:
    for device in devices:
        handle = nvml.nvmlDeviceGetHandleByIndex(int(device.removeprefix(_CUDA)))
        total = nvml.nvmlDeviceGetMemoryInfo(handle).total
        for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle):
            yield device, process.pid, (process.usedGpuMemory or 0) / total  # None where it may not be told


def _holder(device: str, pid: int, share: float, owner: Owner) -> Holder:
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        if process.status() != psutil.STATUS_ZOMBIE:
            return Holder(device, pid, process.name(), share, owner(process))
    return Holder(device, pid, "", share)
