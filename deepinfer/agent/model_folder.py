"""Is this folder a model an engine can read? Looked at before a process is started, so the answer names the file."""

from __future__ import annotations

import json
import os
from pathlib import Path

from deepinfer.fleet.errors import ModelUnavailable

_LARGEST_HEADER = 100_000_000  # the format's own limit


def check_folder(path: Path) -> None:
    """It is there and may be read. Raises `ModelUnavailable` with the exact path."""
    if not path.exists():
        raise ModelUnavailable(f"model_path {path} does not exist on this node; give the path of a model's folder.")
    if not path.is_dir():
        raise ModelUnavailable(f"model_path {path} is not a folder; give the folder that holds config.json.")
    if not os.access(path, os.R_OK | os.X_OK):
        raise ModelUnavailable(f"model_path {path} may not be read by this worker; change its permissions.")


def check_model_folder(path: Path) -> None:
    """It also holds a configuration and whole safetensors files."""
    check_folder(path)
    if not (path / "config.json").is_file():
        raise ModelUnavailable(f"{path} has no config.json; give the folder of a Hugging Face model.")
    files = _weight_files(path)
    if not files:
        raise ModelUnavailable(f"{path} has no .safetensors files; convert the model to safetensors first.")
    for file in files:
        _check_safetensors(file)


def _weight_files(path: Path) -> list[Path]:
    index = path / "model.safetensors.index.json"
    if not index.is_file():
        return sorted(path.glob("*.safetensors"))
    try:
        names = set(json.loads(index.read_bytes())["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError, OSError) as error:
        raise ModelUnavailable(f"{index} is damaged; fetch the model again.") from error
    return [path / name for name in sorted(names)]


def _check_safetensors(file: Path) -> None:
    """Eight bytes of length, a JSON header, and all the bytes that the header promises."""
    try:
        with file.open("rb") as opened:
            size = os.fstat(opened.fileno()).st_size
            length = int.from_bytes(opened.read(8), "little")
            if not 0 < length <= min(size - 8, _LARGEST_HEADER):
                raise ValueError(f"its header says {length} bytes, the file has {size}")
            header = json.loads(opened.read(length))
        promised = max((t["data_offsets"][1] for name, t in header.items() if name != "__metadata__"), default=0)
        if 8 + length + promised != size:
            raise ValueError(f"it should have {8 + length + promised} bytes and has {size}")
    except FileNotFoundError as error:
        raise ModelUnavailable(f"{file} is missing; fetch the model again.") from error
    except OSError as error:
        raise ModelUnavailable(f"{file} cannot be read: {error.strerror}.") from error
    except (ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        raise ModelUnavailable(f"{file} is damaged ({error}); fetch the model again.") from error
