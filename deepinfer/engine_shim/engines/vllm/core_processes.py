"""vLLM's own processes: EngineCore and its workers. Seen to end at once, by their pidfds, whatever vLLM notices."""

from __future__ import annotations

import asyncio
import multiprocessing
import signal
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
    total = 0
    for process in processes:
        try:
            parent = psutil.Process(process.pid)
            total += sum(member.memory_info().rss for member in (parent, *parent.children(recursive=True)))
        except psutil.NoSuchProcess:
            continue
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
