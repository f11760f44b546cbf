"""The processes that `up` keeps: started apart from the terminal, watched while work goes on, ended with nothing left.

Each child has a session of its own, so that Ctrl-C reaches `up` alone and `up` decides the order. Each is told by the
kernel when `up` is gone, so that even `kill -9` of `up` ends everything. What a dying child leaves behind (engines
outlive their agent by design) falls to `up` as the subreaper and is ended by it. Limit: the last two are Linux only.

No threads here, nor in what runs beside it: the kernel tells the children once for each thread of `up` that dies, and a
second SIGINT means "at once" to them.
"""

from __future__ import annotations

import asyncio
import ctypes
import signal
import subprocess
import sys
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil

from deepinfer.cli.failures import OperationFailed
from deepinfer.cli.processes import module_command
from deepinfer.fleet.die_with_parent import dying_with_me

T = TypeVar("T")
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_LAST_LINES = 15
_ORPHAN_SECONDS = 5.0
_PR_SET_CHILD_SUBREAPER = 36


class StopAsked(Exception):
    """Somebody wants everything to end: Ctrl-C, SIGTERM, a closed terminal."""


class ChildDied(OperationFailed):
    """A process that must run has ended."""


@dataclass(frozen=True)
class Child:
    """One process and where it writes."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    ended: asyncio.Event

    async def end_unexpectedly(self) -> None:
        await self.ended.wait()
        status = self.process.returncode
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        raise ChildDied(f"The {self.name} {how}. Its log, {self.log}, ends so:\n{self.last_lines()}")

    def last_lines(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()[-_LAST_LINES:]
        return "\n".join(f"  {line}" for line in lines) or "  (it wrote nothing)"

    def has_said(self, beginning: str) -> bool:
        return any(line.startswith(beginning) for line in self.log.read_text(errors="replace").splitlines())


class Children:
    """Owns the processes and the signals; leaving the context ends them all, the youngest first."""

    def __init__(self, logs: Path, announce: Callable[[str], None]) -> None:
        self._logs = logs
        self._announce = announce
        self._children: list[Child] = []
        self._stop = asyncio.Event()
        self._force = asyncio.Event()

    async def __aenter__(self) -> Children:
        self._logs.mkdir(parents=True, exist_ok=True)
        _become_subreaper()
        loop = asyncio.get_running_loop()
        for number in _STOP_SIGNALS:
            loop.add_signal_handler(number, self._asked)
        loop.add_signal_handler(signal.SIGCHLD, self._look_who_ended)
        return self

    async def __aexit__(self, *_: object) -> None:
        for child in reversed(self._children):
            await self._end(child)
        _end_descendants(0.0 if self._force.is_set() else _ORPHAN_SECONDS)

    def start(self, name: str, module: str, *arguments: str) -> Child:
        log = self._logs / f"{name.replace(' ', '-')}.log"
        if log.exists():
            log.replace(log.with_suffix(".previous.log"))
        command = dying_with_me(module_command(module, *arguments), "SIGINT")
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        child = Child(name, process, log, asyncio.Event())
        self._children.append(child)
        return child

    async def unless_one_dies(self, work: Coroutine[Any, Any, T]) -> T:
        """What `work` answers. Raises `ChildDied` or `StopAsked` if that comes first."""
        working = asyncio.ensure_future(work)
        others = [asyncio.ensure_future(child.end_unexpectedly()) for child in self._children]
        others.append(asyncio.ensure_future(self._until_asked()))
        await _first_of([working, *others])
        return working.result()

    def _asked(self) -> None:
        """The second time means it."""
        (self._force if self._stop.is_set() else self._stop).set()

    def _look_who_ended(self) -> None:
        for child in self._children:
            if child.process.poll() is not None:
                child.ended.set()

    async def _until_asked(self) -> None:
        await self._stop.wait()
        raise StopAsked

    async def _end(self, child: Child) -> None:
        """SIGINT: a worker ends its engines first. It may take its time, unless the user asked twice."""
        if not child.ended.is_set():
            self._announce(f"stopping the {child.name} (Ctrl-C again forces)")
            child.process.send_signal(signal.SIGINT)
        await _first_of([asyncio.ensure_future(event.wait()) for event in (child.ended, self._force)])
        if not child.ended.is_set():
            child.process.kill()
            await child.ended.wait()


async def _first_of(tasks: Sequence[asyncio.Future[Any]]) -> None:
    """Returns when one has ended and the others are cancelled; raises what it raised, an error before a result."""
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()


def _become_subreaper() -> None:
    """Descendants whose parent died become our children, so that none is lost."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _end_descendants(patience_seconds: float) -> None:
    """A killed process hands its children to us, so look again until there are none."""
    while left := psutil.Process().children(recursive=True):
        if patience_seconds:
            for process in left:
                _signal(process, signal.SIGTERM)
            _, left = psutil.wait_procs(left, timeout=patience_seconds)
            patience_seconds = 0.0
        for process in left:
            _signal(process, signal.SIGKILL)
        psutil.wait_procs(left)


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return  # it was quicker
