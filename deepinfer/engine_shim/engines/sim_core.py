"""The simulated engine's core: a real process that holds memory and devices and gives the beat of every step.

It is there so that what happens to real engines can happen to the simulated one: a killed core, a stopped one, one that
the kernel ends for its memory, one that outlives its shim and keeps its device. Like vLLM's it does not notice that its
parent has died. Simulated devices are files locked with flock; the kernel says who holds one.
"""

from __future__ import annotations

import asyncio
import fcntl
import mmap
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from deepinfer.fleet.errors import EngineFailed

_BEAT: Final = b"."
_PAGE: Final = 4096


class SimCore:
    """The process, seen from its engine. Make it with `started`."""

    def __init__(self, process: asyncio.subprocess.Process, line: socket.socket) -> None:
        self._process = process
        self._line = line
        self._beats: deque[Callable[[], None]] = deque()

    @classmethod
    async def started(cls, memory_bytes: int, locks: Sequence[Path]) -> SimCore:
        """Returns when it holds all of it; `EngineFailed` when it cannot."""
        ours, its = socket.socketpair()
        with its:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", __spec__.name, str(memory_bytes), *map(str, locks), stdin=its.fileno()
            )
        ours.setblocking(False)
        core = cls(process, ours)
        if await asyncio.get_running_loop().sock_recv(ours, 1) != _BEAT:
            raise EngineFailed(f"The simulated engine's core did not start ({_end(await process.wait())})")
        asyncio.get_running_loop().add_reader(ours, core._answered)
        return core

    def beat(self, then: Callable[[], None]) -> None:
        """Call `then` when the core has answered: never, when it is stopped or dead."""
        self._beats.append(then)
        try:
            self._line.send(_BEAT)
        except OSError:
            return  # it is dead, which `broken` tells

    async def broken(self) -> str:
        return f"its core (process {self._process.pid}) {_end(await self._process.wait())}"

    async def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._line)
        self._line.close()
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()

    def _answered(self) -> None:
        try:
            beats = self._line.recv(64)
        except OSError:
            beats = b""
        if not beats:
            asyncio.get_running_loop().remove_reader(self._line)
        for _ in beats:
            self._beats.popleft()()


def _end(status: int) -> str:
    return f"was killed by {signal.Signals(-status).name}" if status < 0 else f"exited with status {status}"


def main(memory_bytes: int, locks: Sequence[str]) -> None:
    """Hold what is asked for, say so, then answer every beat, for ever."""
    held = [_locked(Path(path)) for path in locks]
    memory = mmap.mmap(-1, memory_bytes) if memory_bytes else b""
    for at in range(0, memory_bytes, _PAGE):
        memory[at] = 1  # type: ignore[index]  # what was never written takes no memory
    os.write(0, _BEAT)
    while beats := os.read(0, 64):
        os.write(0, beats)
    signal.pause()
    del held, memory


def _locked(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(f"The simulated device {path.name} is held by another process.")
    return descriptor


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
