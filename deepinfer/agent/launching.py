"""The port through which a node starts, finds and ends engines. Its adapters: `native/` (processes), `containers/`.

Whatever runs an engine, an agent finds it again by its mark, which stands on the running thing itself and in no record:
so a kill -9 of the agent at any moment can never make two engines.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psutil

from deepinfer.fleet.resources import Placement


@dataclass(frozen=True)
class Mark:
    """Whose an engine is."""

    placement: str
    epoch: int
    instance: str  # of the agent's state folder: another agent's engines on this machine are not ours

    @classmethod
    def parse(cls, text: str) -> Mark | None:
        placement, _, rest = text.partition(":")
        epoch, _, instance = rest.partition(":")
        return cls(placement, int(epoch), instance) if epoch.isascii() and epoch.isdigit() and instance else None

    def __str__(self) -> str:
        return f"{self.placement}:{self.epoch}:{self.instance}"


def socket_path(sockets: Path, mark: Mark) -> Path:
    """Of its shim, known before there is one. A unix socket's path is short."""
    return sockets / f"{hashlib.sha256(str(mark).encode()).hexdigest()[:16]}.sock"


@dataclass(frozen=True, slots=True)
class Exit:
    """What is known of how an engine ended by itself."""

    status: int | None = None  # negative: the signal; None where nobody learns it
    reason: str | None = None  # what the kernel or the runtime says of it: a sentence without its full stop
    is_sure: bool = False  # the reason is no guess, whatever else was the matter


class Tell(Protocol):
    """What is being done, for people; `needs_help`: it will not go on by itself."""

    def __call__(self, message: str, *, needs_help: bool = False) -> None: ...


class LaunchedEngine(Protocol):
    """A shim and the engine behind it."""

    @property
    def mark(self) -> Mark: ...

    @property
    def pid(self) -> int:
        """Its first process, as this machine counts them."""
        ...

    @property
    def created(self) -> float:
        """Seconds since 1970."""
        ...

    @property
    def socket(self) -> Path:
        """Of its shim."""
        ...

    @property
    def is_adopted(self) -> bool:
        """An earlier agent started it."""
        ...

    @property
    def is_whole(self) -> bool:
        """False: what is left of one, good for nothing but `kill`."""
        ...

    async def ended(self) -> Exit:
        """Wait until it ends."""
        ...

    async def terminate(self) -> None:
        """Ask it to end, make it end after a while; returns when nothing of it is left."""
        ...

    async def kill(self) -> None:
        """End it at once; returns when nothing of it is left. Also after it has ended by itself."""
        ...

    def note_members(self) -> None:
        """It is ready: remember what has to go with it."""
        ...


Start = Callable[[Path | None], Awaitable[LaunchedEngine]]
"""Starts an engine with its model's folder, or answers the one that runs already."""


class Launcher(Protocol):
    """One per agent and kind of backend."""

    async def prepared(self, placement: Placement, tell: Tell) -> Start:
        """Find what the engine is started from, before its model is fetched. May wait, and says for what.

        Raises `EngineWillNotStart` where trying again will not help, and other `DeepinferError`s where it may.
        """
        ...

    async def running(self) -> Sequence[LaunchedEngine]:
        """Every engine of this agent that is there, whole or not."""
        ...

    def owner(self, process: psutil.Process) -> Mark | None:
        """Whose engine a process of this machine belongs to."""
        ...
