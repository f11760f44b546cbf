"""What every replica of a node works with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from deepinfer.agent.engine_folders import engine_folder
from deepinfer.agent.launching import Launcher, Mark
from deepinfer.fleet.config import WorkerConfig
from deepinfer.fleet.spec import Backend, DeploymentSpec

Progress = Callable[[str], None]
ModelFiles = Callable[[DeploymentSpec, Progress], Awaitable[Path | None]]


@dataclass(frozen=True)
class Workshop:
    """One per agent."""

    node: str
    config: WorkerConfig
    engines: Path  # a folder for each placement
    launchers: Mapping[Backend, Launcher]
    model_files: ModelFiles
    in_charge: Callable[[], frozenset[Mark]]  # the engines that replicas of this node look after
    tell: Callable[[bool], None]  # something changed; True: it matters at once, False: a progress message

    def folder(self, placement_id: str) -> Path:
        return engine_folder(self.engines, placement_id)
