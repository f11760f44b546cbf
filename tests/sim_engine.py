"""A simulated engine as the agent runs it: a real shim process, reached over gRPC."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepinfer.engine_shim.client import EngineClient
from deepinfer.engine_shim.state_wire import EngineState
from deepinfer.engine_shim.wire import ShimPhase
from deepinfer.fleet.launch import EngineLaunch
from deepinfer.fleet.spec import EngineKind


@dataclass
class SimProcess:
    """`kill` is `kill -9`."""

    endpoint: str
    client: EngineClient
    process: asyncio.subprocess.Process

    async def kill(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
            await self.process.wait()

    async def state(self, running: int) -> EngineState:
        """The first state with so many requests running."""
        async with aclosing(self.client.watch()) as states:  # type: ignore[type-var]
            async for state in states:
                if state.load.running == running:
                    return state
        raise AssertionError("the engine ended")


@asynccontextmanager
async def sim_process(
    folder: Path,
    replica: int = 0,
    *,
    deployment: str = "chat",
    model: Path | None = None,
    stall_seconds: float = 10.0,
    **engine_args: Any,
) -> AsyncIterator[SimProcess]:
    """Ready, as a replica of a deployment of "org/model". Without a model folder its tokens are bytes."""
    socket = folder / f"{replica}.sock"
    launch = EngineLaunch(
        placement=f"{deployment}-aaaaa-{replica}",
        epoch=1,
        engine=EngineKind.SIM,
        served_names=(deployment, "org/model"),
        model_path=model,
        device="cpu",
        engine_args=engine_args,
        stall_seconds=stall_seconds,
        socket=socket,
        port_note=folder / f"{replica}.port.json",
    )
    file = folder / f"{replica}.json"
    file.write_bytes(launch.to_json())
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "deepinfer.engine_shim", str(file), start_new_session=True
    )
    client = EngineClient(f"unix:{socket}")
    sim = SimProcess("", client, process)
    try:
        sim.endpoint = await _endpoint_when_ready(client)
        yield sim
    finally:
        await client.close()
        await sim.kill()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its core, which outlives it


async def _endpoint_when_ready(client: EngineClient) -> str:
    await client.info(timeout_seconds=30, wait_for_ready=True)
    async with aclosing(client.watch()) as states:  # type: ignore[type-var]
        async for state in states:
            if state.phase is ShimPhase.READY:
                return (await client.info()).endpoint
    raise AssertionError("the engine ended before it was ready")


@asynccontextmanager
async def sim_processes(folder: Path, replicas: int, **engine_args: Any) -> AsyncIterator[list[SimProcess]]:
    """Started side by side."""
    async with AsyncExitStack() as stack:
        starting = [stack.enter_async_context(sim_process(folder, n, **engine_args)) for n in range(replicas)]
        yield list(await asyncio.gather(*starting))
