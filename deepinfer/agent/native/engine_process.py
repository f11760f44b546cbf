"""One engine's process group: who it is, when it ends, and that nothing of it is left.

A process is known to be ours by a mark in its environment: a recycled pid is never taken for an engine.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import psutil

from deepinfer.agent.launching import Exit, Mark
from deepinfer.agent.native.memory_cgroup import MemoryCgroup, OutOfMemoryKills
from deepinfer.agent.native.own_sockets import remove
from deepinfer.agent.native.shared_memory import remove_unused, segments_of

MARK = "DEEPINFER_PLACEMENT"
KILL_AFTER_SECONDS = 10.0
_LOOK_AGAIN_SECONDS = 0.5  # where the kernel cannot tell that a process ended (macOS)

log = logging.getLogger(__name__)


@dataclass
class EngineProcess:
    """The shim, and through its mark and session everything it started."""

    mark: Mark
    pid: int
    created: float  # seconds since 1970, as the clock was when it was found
    socket: Path
    folder: Path  # its log and launch file
    child: subprocess.Popen[bytes] | None = field(default=None, compare=False)  # None for an adopted one
    seen: dict[int, psutil.Process] = field(default_factory=dict, compare=False)  # its processes so far
    segments: set[Path] = field(default_factory=set, compare=False)  # shared memory they were seen to use
    sockets: tuple[Path, ...] = field(default=(), compare=False)  # files and folders of them that must go with it
    is_whole: bool = True  # False: its shim died while no agent looked, and `pid` is a worker it left behind
    memory: OutOfMemoryKills = field(default_factory=OutOfMemoryKills, compare=False)
    cgroup: MemoryCgroup | None = field(default=None, init=False, compare=False)
    _shim: psutil.Process | None = field(default=None, init=False, compare=False)  # None: it had ended already

    def __post_init__(self) -> None:
        with suppress(psutil.NoSuchProcess):
            self._shim = psutil.Process(self.pid)
        self._note_cgroup()

    @property
    def is_adopted(self) -> bool:
        return self.child is None

    async def ended(self) -> Exit:
        """Wait for the shim's end; its exit status only a parent learns (negative: the signal)."""
        async with _exit_event(self.pid) as exited:
            if self._alive():
                await exited.wait()
        status = self.child.wait() if self.child else None  # reaps it; it has ended, so this does not block
        out_of_memory = self.memory.reason(self.cgroup)
        return Exit(status, out_of_memory and f"The engine failed, {out_of_memory}")

    async def terminate(self) -> None:
        """SIGTERM to all of it, SIGKILL after a while; returns when every process is verified gone."""
        self._signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(KILL_AFTER_SECONDS):
                await self._gone()
        except TimeoutError:
            await self.kill()

    async def kill(self) -> None:
        """SIGKILL to all of it; returns when every process is verified gone, and what they would leave behind."""
        while self.members():
            self.note_members()
            self._signal(signal.SIGKILL)
            with suppress(TimeoutError):
                async with asyncio.timeout(1):  # one may have been forked meanwhile: signal again
                    await self._gone()
        await asyncio.to_thread(remove_unused, self.segments)
        await asyncio.to_thread(remove, self.sockets)

    def note_members(self) -> None:
        """Remember what must go with it, also if somebody else kills its shim: a program may overwrite its marks."""
        self._note_cgroup()
        for process in self.members():
            self.seen[process.pid] = process
        self.segments.update(segments_of(self.seen))

    def members(self) -> list[psutil.Process]:
        """Everything alive of this engine, orphans and strays that left its session included."""
        marked = {process.pid: process for process in _processes_marked(self.mark.instance, self.mark)}
        if self.is_whole and (
            marked or self._alive()
        ):  # without these the session's number may belong to somebody else by now
            marked |= {process.pid: process for process in _session(self.pid)}
        marked |= {pid: process for pid, process in self.seen.items() if _lives(process)}
        return list(marked.values())

    def _note_cgroup(self) -> None:
        self.cgroup = self.memory.remember(self.pid) or self.cgroup

    async def _gone(self) -> None:
        while members := self.members():
            for process in members:
                await _exit_of(process.pid)

    def _alive(self) -> bool:
        return self._shim is not None and _lives(self._shim)

    def _signal(self, number: int) -> None:
        """The group at once, because it may be forking; then one by one whoever left it."""
        whole_group = self.is_whole and self._alive()
        if whole_group:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, number)
        for process in self.members():
            with suppress(psutil.NoSuchProcess, ProcessLookupError):
                if not (whole_group and os.getpgid(process.pid) == self.pid):
                    process.send_signal(number)


def spawned(
    command: Sequence[str], folder: Path, environment: Mapping[str, str], out: int | BinaryIO
) -> subprocess.Popen[bytes]:
    """In a session of its own, so that it outlives the agent, and in its `folder`; `out` is its log."""
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=out,
        start_new_session=True,
    )


def engine_processes(instance: str) -> dict[Mark, list[psutil.Process]]:
    """Every living process of this agent's engines, whoever its parent is."""
    found: dict[Mark, list[psutil.Process]] = {}
    for process in _processes_marked(instance):
        mark = mark_of(process)
        if mark is not None:
            found.setdefault(mark, []).append(process)
    return found


def mark_of(process: psutil.Process) -> Mark | None:
    """The mark in a process's environment; None where we may not look or it has ended."""
    try:
        if process.uids().real != os.getuid() or process.status() == psutil.STATUS_ZOMBIE:
            return None
        return Mark.parse(process.environ().get(MARK, ""))
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return None
    except OSError as error:  # a process that is just being replaced by exec
        log.debug("the environment of process %d cannot be read: %s", process.pid, error)
        return None


def _lives(process: psutil.Process) -> bool:
    """This very one. psutil compares when it began by a clock that nobody sets; its `create_time` moves with ours."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _processes_marked(instance: str, wanted: Mark | None = None) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        mark = mark_of(process)
        if mark is not None and mark.instance == instance and wanted in (None, mark):
            yield process


def _session(leader: int) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with suppress(ProcessLookupError, PermissionError, psutil.NoSuchProcess):
            if os.getsid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                yield process


async def _exit_of(pid: int) -> None:
    async with _exit_event(pid) as exited:
        await exited.wait()


@asynccontextmanager
async def _exit_event(pid: int) -> AsyncIterator[asyncio.Event]:
    """An event that is set when the process ends, be it a child or not; already set if it has ended."""
    exited = asyncio.Event()
    if sys.platform != "linux":
        async with asyncio.TaskGroup() as tasks:
            looking = tasks.create_task(_look_for_the_end(pid, exited))
            yield exited
            looking.cancel()
        return
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        exited.set()
        yield exited
        return
    loop = asyncio.get_running_loop()
    loop.add_reader(descriptor, exited.set)
    try:
        yield exited
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


async def _look_for_the_end(pid: int, exited: asyncio.Event) -> None:
    with suppress(psutil.NoSuchProcess):
        while psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:  # noqa: ASYNC110  nothing there to wait for
            await asyncio.sleep(_LOOK_AGAIN_SECONDS)
    exited.set()
