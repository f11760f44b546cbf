"""The engines that can be started on this machine: deepinfer's own, and those with an environment.

Heavy libraries are looked for, never imported: the agent stays small.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path

from deepinfer.engine_environments.environment import environments
from deepinfer.fleet.resources import ANY_ACCELERATOR, InstalledEngine
from deepinfer.fleet.spec import EngineKind

_NEEDED = {
    EngineKind.SIM: (),
    EngineKind.LAYER_SHARD: ("torch", "transformers", "safetensors"),
}


def installed_engines(engines: Path) -> tuple[InstalledEngine, ...]:
    """All of them, those in environments below `engines` last."""
    whole = (environment.record.engine for environment in environments(engines) if environment.is_whole())
    return (*own_engines(), *whole)


def own_engines() -> tuple[InstalledEngine, ...]:
    """Those that run in deepinfer's own environment; their version is deepinfer's."""
    version = importlib.metadata.version("deepinfer")
    found = (kind for kind, modules in _NEEDED.items() if all(map(importlib.util.find_spec, modules)))
    return tuple(InstalledEngine(kind=kind, version=version, accelerator=ANY_ACCELERATOR) for kind in found)
