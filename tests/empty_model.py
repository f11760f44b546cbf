"""A folder that passes for a model, where the simulated engine reads nothing of it."""

from __future__ import annotations

from pathlib import Path


def put_empty_model(folder: Path) -> Path:
    """Makes the folder."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    return folder
