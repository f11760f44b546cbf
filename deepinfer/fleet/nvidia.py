"""The NVIDIA GPUs of this machine, as the driver's own library (NVML) tells them. Nothing is computed or allocated."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from typing import Any, TypeVar

from deepinfer.fleet.resources import Device

T = TypeVar("T")

log = logging.getLogger(__name__)


def nvidia_gpus(visible: str | None) -> tuple[Device, ...]:
    """Those that `visible` (CUDA_VISIBLE_DEVICES; None: all) leaves; none where there is no driver."""
    none: tuple[Device, ...] = ()
    return with_nvml(lambda nvml: _gpus(nvml, visible), none)


def with_nvml(look: Callable[[Any], T], otherwise: T) -> T:
    """What `look` finds with the library; `otherwise` where there is no driver, or it fails."""
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        log.debug("no GPUs looked for: nvidia-ml-py is not installed")
        return otherwise
    try:
        nvml.nvmlInit()
        try:
            return look(nvml)
        finally:
            nvml.nvmlShutdown()
    except nvml.NVMLError as error:
        log.debug("NVML found nothing: %s", error)
        return otherwise


def _gpus(nvml: Any, visible: str | None) -> tuple[Device, ...]:
    return tuple(_gpu(nvml, index) for index in range(nvml.nvmlDeviceGetCount()) if _is_visible(index, visible))


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
