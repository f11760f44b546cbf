"""The NVIDIA GPUs of this machine, as the driver's own library (NVML) tells them. Nothing is computed or allocated."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from deepinfer.fleet.resources import Device

log = logging.getLogger(__name__)


def nvidia_gpus(visible: str | None) -> tuple[Device, ...]:
    """Those that `visible` (CUDA_VISIBLE_DEVICES; None: all) leaves; none where there is no driver."""
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        log.debug("no GPUs looked for: nvidia-ml-py is not installed")
        return ()
    try:
        with _initialised(nvml):
            return tuple(_gpu(nvml, index) for index in range(nvml.nvmlDeviceGetCount()) if _is_visible(index, visible))
    except nvml.NVMLError as error:
        log.debug("no GPUs found: %s", error)
        return ()


@contextmanager
def _initialised(nvml: Any) -> Iterator[None]:
    nvml.nvmlInit()
    try:
        yield
    finally:
        nvml.nvmlShutdown()


def _gpu(nvml: Any, index: int) -> Device:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    name = nvml.nvmlDeviceGetName(handle)
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    return Device(
        id=f"cuda:{index}",
        kind="cuda",
        name=name.decode() if isinstance(name, bytes) else name,
        memory_bytes=nvml.nvmlDeviceGetMemoryInfo(handle).total,
        compute_capability=f"{major}.{minor}",
    )


def _is_visible(index: int, visible: str | None) -> bool:
    """Numbers only; devices named by UUID are not offered, since an engine is told its device by number."""
    return visible is None or str(index) in (part.strip() for part in visible.split(","))
