"""Is this folder a model an engine can read, and what does it hold? By its headers: no weight is read.

Looked at before a process is started, so the answer names the file.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from deepinfer.fleet.errors import ModelCorrupt, ModelRefused, ModelUnavailable
from deepinfer.fleet.safetensors_header import (
    LENGTH_BYTES,
    TensorHead,
    check_header,
    header_length,
    tensors_of,
)


def check_place(path: Path, roots: tuple[Path, ...]) -> None:
    """Neither it nor a link in it leads out of the folders that models may lie in. Raises `ModelRefused`."""
    allowed = [Path(os.path.realpath(root)) for root in roots]
    for file in (path, *(each for each in path.rglob("*") if each.is_symlink())):
        target = Path(os.path.realpath(file))
        if not any(target.is_relative_to(root) for root in allowed):
            leads = f"{file} leads to {target}" if file.is_symlink() else f"{file} is {target}"
            raise ModelRefused(
                f"{leads}, below no folder that this node takes models from ({', '.join(map(str, roots))});"
                " model_roots in its worker's configuration says which."
            )


def check_folder(path: Path) -> None:
    """It is there and may be read. Raises `ModelUnavailable` with the exact path."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ModelUnavailable(
            f"model_path {path} does not exist on this node; give the path of a model's folder."
        ) from error
    except OSError as error:
        raise ModelUnavailable(f"model_path {path} cannot be looked at: {error.strerror}; mend that first.") from error
    if not stat.S_ISDIR(mode):
        raise ModelUnavailable(f"model_path {path} is not a folder; give the folder that holds config.json.")
    if not os.access(path, os.R_OK | os.X_OK):
        raise ModelUnavailable(f"model_path {path} may not be read by this worker; change its permissions.")


def check_model_folder(path: Path) -> None:
    """It also holds a configuration and whole safetensors files. Raises `ModelCorrupt` for what is damaged."""
    check_folder(path)
    config = path / "config.json"
    if not config.is_file():
        raise ModelUnavailable(f"{path} has no config.json; give the folder of a Hugging Face model.")
    if not isinstance(_json(config), dict):
        raise _corrupt(config, "it is no JSON object")
    files = _weight_files(path)
    if not files:
        raise ModelUnavailable(f"{path} has no .safetensors files; convert the model to safetensors first.")
    for file in files:
        _header(file)


def config_of(path: Path) -> dict[str, Any]:
    """Of a folder that `check_model_folder` found right."""
    config: dict[str, Any] = _json(path / "config.json")
    return config


def tensors_in(path: Path) -> dict[str, TensorHead]:
    """The tensors of a model's folder, by name. Raises what `check_model_folder` does."""
    check_model_folder(path)
    found: dict[str, TensorHead] = {}
    for file in _weight_files(path):
        found |= tensors_of(_header(file))
    return found


def _weight_files(path: Path) -> list[Path]:
    index = path / "model.safetensors.index.json"
    if not index.is_file():
        return sorted(path.glob("*.safetensors"))
    try:
        names = {Path(name) for name in _json(index)["weight_map"].values()}
    except (KeyError, AttributeError, TypeError) as error:
        raise _corrupt(index, "it does not say which file holds which weights") from error
    for name in names:
        if name.is_absolute() or ".." in name.parts:
            raise _corrupt(index, f"it names {name}, which is not below the model's folder")
    return [path / name for name in sorted(names)]


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise _corrupt(file, "it is no JSON") from error
    except OSError as error:
        raise _unreadable(file, error) from error


def _header(file: Path) -> bytes:
    """That of a whole file."""
    try:
        with file.open("rb") as opened:
            size = os.fstat(opened.fileno()).st_size
            length = header_length(opened.read(LENGTH_BYTES), size)
            header = opened.read(length)
            check_header(header, size - LENGTH_BYTES - length)
    except FileNotFoundError as error:
        raise ModelUnavailable(f"{file} is missing; fetch the model again.") from error
    except OSError as error:
        raise _unreadable(file, error) from error
    except ValueError as error:  # also of a name that no file can have
        raise _corrupt(file, str(error)) from error
    return header


def _corrupt(file: Path, what: str) -> ModelCorrupt:
    return ModelCorrupt(f"{file}: {what}; fetch the model again.")


def _unreadable(file: Path, error: OSError) -> ModelUnavailable:
    return ModelUnavailable(f"{file} cannot be read by this worker: {error.strerror}.")
