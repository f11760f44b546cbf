"""The agent's own folder: one agent at a time, and an identity that survives restarts."""

from __future__ import annotations

import fcntl
import logging
import re
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import psutil

from deepinfer.agent.native.engine_process import mark_of
from deepinfer.fleet.durable_file import write_durably
from deepinfer.fleet.errors import DeepinferError

_INSTANCE = re.compile(r"[0-9a-f]{16}")

log = logging.getLogger(__name__)


class StateInUse(DeepinferError):
    """Another worker uses this state folder; stop it, or start this one with another --state-dir."""


class StateUnusable(DeepinferError):
    """The state folder cannot be written; make room, or name another with --state-dir."""


@dataclass(frozen=True)
class StateFolder:
    """What an agent keeps between its runs."""

    path: Path
    instance: str

    @property
    def engines(self) -> Path:
        return self.path / "engines"


@contextmanager
def opened_state(path: Path) -> Iterator[StateFolder]:
    """The folder at `path`, ours alone until the block ends. Raises `StateInUse` and `StateUnusable`."""
    with ExitStack() as held:
        try:
            held.enter_context(_locked(path))
            state = StateFolder(path, _instance_of(path))
        except OSError as error:
            next_step = "make room, or give this worker another --state-dir"
            raise StateUnusable(
                f"The state folder {path} cannot be written ({error.strerror}); {next_step}."
            ) from error
        yield state


def _locked(path: Path) -> TextIO:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    (path / "engines").mkdir(mode=0o700, exist_ok=True)
    lock = (path / "lock").open("a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        raise StateInUse(
            f"Another worker uses the state folder {path}; stop it, or give this one another name or --state-dir."
        ) from error
    return lock


def _instance_of(path: Path) -> str:
    file = path / "instance"
    with suppress(FileNotFoundError, UnicodeDecodeError):
        instance = file.read_text().strip()
        if _INSTANCE.fullmatch(instance):
            return instance
    instance = _instance_of_running_engines(path / "engines") or secrets.token_hex(8)
    if file.exists():
        log.warning("%s was damaged; this worker now goes by %s", file, instance)
    write_durably(file, f"{instance}\n".encode())
    return instance


def _instance_of_running_engines(engines: Path) -> str | None:
    """The name this folder's living engines know their agent by, so that a damaged file does not orphan them."""
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            mark = mark_of(process)
            if mark is not None and Path(process.cwd()).parent == engines.resolve():
                return mark.instance[:16]  # a container's sidecar has it with a suffix
    return None
