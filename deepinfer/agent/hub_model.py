"""A model of the Hugging Face hub: fetched once into the hub's own cache, then pinned to what was fetched.

A pin is written when everything is there. With it a start needs no network, and a restart never changes the weights.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from deepinfer.fleet.durable_file import write_durably
from deepinfer.fleet.errand import run_errand
from deepinfer.fleet.errors import ModelUnavailable
from deepinfer.fleet.exclusive import exclusive
from deepinfer.fleet.model_folder import check_model_folder
from deepinfer.fleet.models_here import pin_of, pinned

Progress = Callable[[str], None]


@dataclass(frozen=True)
class HubModels:
    """`models` holds the pins; the files are where huggingface_hub keeps them."""

    models: Path
    environment: Mapping[str, str]  # HF_TOKEN, HF_HOME and HF_ENDPOINT work as everywhere

    async def folder_of(self, model: str, progress: Progress) -> Path:
        pin = pin_of(self.models, model)
        if (folder := pinned(pin)) is not None:
            return folder
        lock_file = self.models / ".locks" / f"hub--{pin.name}"
        async with exclusive(lock_file, lambda: progress("waiting for another worker that fetches it")) as lock:
            if (folder := pinned(pin)) is not None:
                return folder
            folder = await self._fetched(model, progress, lock)
            check_model_folder(folder)
            pin.parent.mkdir(exist_ok=True)
            write_durably(pin, os.fsencode(folder))
        return folder

    async def _fetched(self, model: str, progress: Progress, lock: int) -> Path:
        progress(f"fetching {model}")
        said: dict[str, str] = {}

        def on_line(line: str) -> None:
            kind, _, text = line.partition(": ")
            said[kind] = text
            if kind == "progress":
                progress(text)

        done = await run_errand(
            "deepinfer.agent.hub_download", model, environment=self.environment, on_line=on_line, kept_open=(lock,)
        )
        if done.exit_status == 0 and "folder" in said:
            return Path(said["folder"])
        last_line = done.last_lines[-1] if done.last_lines else f"exit status {done.exit_status}"
        raise ModelUnavailable(said.get("error") or f"{model} could not be fetched: {last_line}.")


def hub_cache(environment: Mapping[str, str]) -> Path | None:
    """Where huggingface_hub keeps its files, if it has any."""
    caches = Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    home = Path(environment.get("HF_HOME") or caches / "huggingface")
    cache = Path(environment.get("HF_HUB_CACHE") or home / "hub")
    return cache if cache.is_dir() else None
