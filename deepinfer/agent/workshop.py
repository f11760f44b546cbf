"""What every replica of a node works with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from deepinfer.agent.engine_process import Mark
from deepinfer.agent.launcher import NativeLauncher
from deepinfer.agent.memory_cgroup import OutOfMemoryKills
from deepinfer.engine_environments.environment import Environment
from deepinfer.fleet.config import WorkerConfig
from deepinfer.fleet.resources import DeploymentSpec, Placement

Progress = Callable[[str], None]
ModelFiles = Callable[[DeploymentSpec, Progress], Awaitable[Path | None]]
EnvironmentFor = Callable[[Placement], Environment | None]
"""None: deepinfer's own."""


@dataclass(frozen=True)
class Workshop:
    """One per agent."""

    node: str
    config: WorkerConfig
    launcher: NativeLauncher
    model_files: ModelFiles
    environment_for: EnvironmentFor  # of a placement's engine
    in_charge: Callable[[], frozenset[Mark]]  # the engines that replicas of this node look after
    tell: Callable[[bool], None]  # something changed; True: it matters at once, False: a progress message
    out_of_memory: OutOfMemoryKills = field(default_factory=OutOfMemoryKills)
