"""vLLM's own processes: EngineCore and its workers. Seen to end at once, by their pidfds, whatever vLLM notices."""

from __future__ import annotations

import asyncio
import multiprocessing
import signal
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.process import BaseProcess

import psutil

_REAPED_SECONDS = 1.0


def core_processes() -> list[BaseProcess]:
    """EngineCore, one for each data-parallel rank: what this process started through multiprocessing."""
    return multiprocessing.active_children()


async def first_end(processes: list[BaseProcess]) -> str:
    """Waits until one of them has ended; says which, and how."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[BaseProcess] = loop.create_future()
    for process in processes:
        loop.add_reader(process.sentinel, _settle, ended, process)
    try:
        process = await ended
    finally:
        for each in processes:
            loop.remove_reader(each.sentinel)
    await asyncio.to_thread(process.join, _REAPED_SECONDS)  # its files are closed a moment before its status is there
    return f"vLLM's {process.name} (process {process.pid}) {_how(process.exitcode)}"


def resident_bytes(processes: list[BaseProcess]) -> int:
    """Memory held by them and their workers, as the kernel counts it; what they share is counted once a process."""
    return int(_summed(processes, lambda process: process.memory_info().rss))


def cpu_seconds(processes: list[BaseProcess]) -> float:
    """Used so far by them, their workers, and what these ran (a compiler) and waited for."""
    return _summed(processes, lambda process: sum(process.cpu_times()[:4]))


def _summed(processes: list[BaseProcess], figure: Callable[[psutil.Process], float]) -> float:
    """Over all that are alive, descendants included."""
    total = 0.0
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            parent = psutil.Process(process.pid)
            for member in (parent, *parent.children(recursive=True)):
                with suppress(psutil.NoSuchProcess):
                    total += figure(member)
    return total


def _settle(ended: asyncio.Future[BaseProcess], process: BaseProcess) -> None:
    if not ended.done():
        ended.set_result(process)


def _how(exit_code: int | None) -> str:
    if exit_code is None:
        return "ended"
    if exit_code < 0:
        return f"was killed by {signal.Signals(-exit_code).name}"
    return f"exited with status {exit_code}"
