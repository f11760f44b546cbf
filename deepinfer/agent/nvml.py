"""NVIDIA's management library, where there is one."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

log = logging.getLogger(__name__)


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
