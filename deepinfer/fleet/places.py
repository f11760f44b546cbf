"""Where deepinfer keeps files, by the XDG rules."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from deepinfer.fleet.errors import DeepinferError


class UnsafeRuntimeDir(DeepinferError):
    """The folder for sockets belongs to somebody else."""


def data_dir() -> Path:
    """What must survive: etcd's data, the agents' records, logs."""
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "deepinfer"


def engines_dir() -> Path:
    """The environments of engines, a folder each; $DEEPINFER_ENGINES_DIR puts them elsewhere."""
    named = os.environ.get("DEEPINFER_ENGINES_DIR")
    return Path(named).absolute() if named else data_dir() / "engines"


def cache_dir() -> Path:
    """What can be made again: models."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "deepinfer"


def runtime_dir() -> Path:
    """Unix sockets: short, as a socket's path may have 107 bytes at most; ours alone, because it grants control."""
    base = os.environ.get("XDG_RUNTIME_DIR")
    path = Path(base) / "deepinfer" if base else Path(f"/tmp/deepinfer-{os.getuid()}")  # noqa: S108
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise UnsafeRuntimeDir(f"{path} must be a folder of yours with mode 0700; remove it and start again.")
    return path
