"""vLLM's own processes: EngineCore and its workers. Seen to end at once, by their sentinels, whatever vLLM notices."""

from __future__ import annotations

import asyncio
import multiprocessing
import signal
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.process import BaseProcess

import psutil

_REAPED_SECONDS = 2.0
_LOOK_SECONDS = 0.01


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
    return f"vLLM's {process.name} (process {process.pid}) {_how(await _exit_code(process))}"


def family(processes: list[BaseProcess]) -> list[psutil.Process]:
    """Those that are alive, and their descendants. The kernel is asked about every process of the machine."""
    members = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            parent = psutil.Process(process.pid)
            members += [parent, *parent.children(recursive=True)]
    return members


def resident_bytes(members: list[psutil.Process]) -> int:
    """Memory held, as the kernel counts it; what they share is counted once a process."""
    return int(_summed(members, lambda process: process.memory_info().rss))


def cpu_seconds(members: list[psutil.Process]) -> float:
    """Used so far, also by what they ran (a compiler) and waited for."""
    return _summed(members, lambda process: sum(process.cpu_times()[:4]))


def _summed(members: list[psutil.Process], figure: Callable[[psutil.Process], float]) -> float:
    total = 0.0
    for member in members:
        with suppress(psutil.NoSuchProcess):
            total += figure(member)
    return total


async def _exit_code(process: BaseProcess) -> int | None:
    """Its files are closed a moment before its status is there; and vLLM's monitor may reap it, in a thread of its own.

    Then there is nothing left to wait for here, only to look until that thread has written the status down.
    """
    with suppress(TimeoutError):
        async with asyncio.timeout(_REAPED_SECONDS):
            while process.exitcode is None:  # noqa: ASYNC110  nothing tells
                await asyncio.sleep(_LOOK_SECONDS)
    return process.exitcode


def _settle(ended: asyncio.Future[BaseProcess], process: BaseProcess) -> None:
    if not ended.done():
        ended.set_result(process)


def _how(exit_code: int | None) -> str:
    if exit_code is None:
        return "ended"
    if exit_code < 0:
        return f"was killed by {signal.Signals(-exit_code).name}"
    return f"exited with status {exit_code}"
