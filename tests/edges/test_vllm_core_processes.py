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
    told = asyncio.create_task(first_end([core]))
    core.kill()
    _, status = await asyncio.to_thread(os.waitpid, core.pid or 0, 0)
    asyncio.get_running_loop().call_later(0.2, _write_down, core, status)
    assert await told == f"vLLM's EngineCore (process {core.pid}) was killed by SIGKILL"


def _write_down(core: BaseProcess, status: int) -> None:
    core._popen.returncode = os.waitstatus_to_exitcode(status)  # type: ignore[attr-defined]
