"""How an ended core is told, also where vLLM's own monitor reaps it first."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import time
from multiprocessing.process import BaseProcess

from deepinfer.engine_shim.engines.vllm.core_processes import first_end


async def test_one_that_another_thread_reaps_is_told_with_its_signal() -> None:
    """vLLM's monitor holds the status for a moment before it writes it down; here the moment is a long one."""
    core = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,), name="EngineCore")
    core.start()
    core.kill()
    asyncio.get_running_loop().call_later(0.2, _write_down, core, _reaped(core))
    assert await first_end([core]) == f"vLLM's EngineCore (process {core.pid}) was killed by SIGKILL"


def _reaped(core: BaseProcess) -> int:
    _, status = os.waitpid(core.pid or 0, 0)
    return os.waitstatus_to_exitcode(status)


def _write_down(core: BaseProcess, exit_code: int) -> None:
    core._popen.returncode = exit_code  # type: ignore[attr-defined]
