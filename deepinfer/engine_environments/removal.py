"""Takes an environment away: out of the agents' sight first, then off the disk. Not while an engine runs from it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import psutil

from deepinfer.engine_environments.environment import MARKER, UNFINISHED, discard, is_being_made
from deepinfer.engine_environments.installation import ring
from deepinfer.fleet.errors import DeepinferError


class NotRemoved(DeepinferError):
    """The engine is used, or is not there."""


def remove(engines: Path, name: str) -> None:
    """Raises `NotRemoved`."""
    folder = engines / name
    if "/" in name or name.startswith(".") or not ((folder / MARKER).exists() or (folder / UNFINISHED).exists()):
        raise NotRemoved(f'There is no engine "{name}" in {engines}; `deepinfer engine list` shows what there is.')
    if is_being_made(engines, name):
        raise NotRemoved(f"{name} is just being installed; end that first.")
    if (process := _user_of(folder)) is not None:
        raise NotRemoved(f"{name} is used by process {process.pid}; delete the deployments that run on it first.")
    discard(folder)
    ring(engines)


def _user_of(folder: Path) -> psutil.Process | None:
    """A process that runs with its interpreter, whatever path led there; of a link, one that came over the link."""
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            command = process.cmdline()
            if command and command[0].startswith("/") and _is_from(Path(command[0]).parent, folder):
                return process
    return None


def _is_from(bin_folder: Path, folder: Path) -> bool:
    if folder.is_symlink():
        return bin_folder == folder / "bin"
    return bin_folder.resolve() == folder.resolve() / "bin"
