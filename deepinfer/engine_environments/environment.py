"""Environments of engines on this machine: what lies in each folder, and what is left of one that was never finished.

A folder is an environment once it has `engine.json`, which is written last. One without it that nobody works on is a
leftover of a killed installation. Nothing that deepinfer did not make is ever touched.
"""

from __future__ import annotations

import fcntl
import logging
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, ValidationError

from deepinfer.engine_environments.flags import EngineFlags
from deepinfer.fleet.resource import Resource
from deepinfer.fleet.resources import InstalledEngine

MARKER = "engine.json"
FLAGS = "flags.json"
UNFINISHED = "unfinished"
"""Lies in a folder from its first moment, so that a leftover can be told from what somebody else put there."""

_NAME = re.compile(r"(?P<kind>[a-z][a-z-]*)-(?P<version>\d[A-Za-z0-9.+]*)-(?P<accelerator>cpu|cuda)")
_GOING = ".going-"

log = logging.getLogger(__name__)


class EnvironmentRecord(Resource):
    """What an installation tells of itself."""

    engine: InstalledEngine
    python: str
    packages: int
    size_bytes: int
    removed: dict[str, str] = Field(default_factory=dict)  # packages that did not load, and what is missed without them
    made_at: str  # ISO 8601, UTC


@dataclass(frozen=True)
class Environment:
    """A finished one."""

    folder: Path
    record: EnvironmentRecord

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def interpreter(self) -> Path:
        return self.folder / "bin" / "python"

    def is_whole(self) -> bool:
        """Whether its Python is still there; an upgrade of the system's may have taken it away."""
        return self.interpreter.exists()

    def flags(self) -> EngineFlags:
        return EngineFlags.model_validate_json((self.folder / FLAGS).read_bytes())


def name_of(engine: InstalledEngine) -> str:
    return f"{engine.kind}-{engine.version}-{engine.accelerator}"


def environments(engines: Path) -> tuple[Environment, ...]:
    """The finished ones, by name."""
    found = (environment_at(folder) for folder in sorted(engines.glob("[!.]*")))
    return tuple(environment for environment in found if environment is not None)


def environment_at(folder: Path) -> Environment | None:
    try:
        return Environment(folder, EnvironmentRecord.model_validate_json((folder / MARKER).read_bytes()))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValidationError as error:
        log.debug("%s cannot be read: %s", folder / MARKER, error.errors()[0]["msg"])
        return None


def unfinished(engines: Path) -> Iterator[Path]:
    """Folders of installations that are under way or were killed."""
    for folder in sorted(engines.glob("[!.]*")):
        if is_leftover(folder):
            yield folder


def is_leftover(folder: Path) -> bool:
    """Whether it is an installation's and has no marker; it may be under way."""
    if not _NAME.fullmatch(folder.name) or not folder.is_dir() or (folder / MARKER).exists():
        return False
    return (folder / UNFINISHED).exists() or not any(folder.iterdir())


def unreadable(engines: Path) -> tuple[Path, ...]:
    """Folders whose record this version cannot read."""
    marked = (marker.parent for marker in sorted(engines.glob(f"[!.]*/{MARKER}")))
    return tuple(folder for folder in marked if environment_at(folder) is None)


def lock_file(engines: Path, name: str) -> Path:
    return engines / ".locks" / name


def is_being_made(engines: Path, name: str) -> bool:
    """Whether a living process works on it."""
    try:
        with lock_file(engines, name).open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


def clear_leftovers(engines: Path) -> list[str]:
    """Remove what killed installations and removals left; answers the names of what was found."""
    cleared = []
    for folder in unfinished(engines):
        lock = lock_file(engines, folder.name)
        lock.parent.mkdir(exist_ok=True)
        with lock.open("a") as held:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            if not (folder / MARKER).exists():  # it may have been finished just now
                discard(folder)
                cleared.append(folder.name)
    for going in engines.glob(f"{_GOING}*"):
        shutil.rmtree(going, ignore_errors=True)
    return cleared


def discard(folder: Path) -> None:
    """Out of sight at once, then off the disk. A link is removed, never what it leads to."""
    if folder.is_symlink():
        folder.unlink()
        return
    going = folder.with_name(f"{_GOING}{folder.name}")
    shutil.rmtree(going, ignore_errors=True)
    folder.replace(going)
    shutil.rmtree(going, ignore_errors=True)
