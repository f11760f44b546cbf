"""A sidecar shim as the agent runs it: a real process beside an OpenAI server."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepinfer.engine_shim.client import EngineClient, EngineState, ShimPhase
from deepinfer.fleet.launch import ContainerServer, EngineLaunch
from deepinfer.fleet.spec import EngineKind


def sidecar_launch(folder: Path, server: ContainerServer, **fields: Any) -> EngineLaunch:
    given: dict[str, Any] = {"served_names": ("chat", "org/model"), "device": "cpu", **fields}
    return EngineLaunch(
        placement="chat-aaaaa-0",
        epoch=1,
        engine=EngineKind.VLLM,
        socket=folder / "sidecar.sock",
        container=server,
        **given,
    )


@dataclass
class Sidecar:
    """`log` is what it prints."""

    client: EngineClient
    process: asyncio.subprocess.Process
    log: Path

    async def state(self, wanted: Callable[[EngineState], bool], *, kv: bool = False) -> EngineState:
        """The first that is wanted."""
        async with aclosing(self.client.watch(kv=kv)) as states:  # type: ignore[type-var]
            async for state in states:
                if wanted(state):
                    return state
        raise AssertionError(f"the sidecar ended:\n{self.log.read_text()}")

    async def ready(self) -> None:
        await self.client.info(timeout_seconds=30, wait_for_ready=True)
        await self.state(lambda state: state.phase is ShimPhase.READY)


@asynccontextmanager
async def sidecar_process(folder: Path, launch: EngineLaunch) -> AsyncIterator[Sidecar]:
    """Started; `ready` waits for more."""
    file, log = folder / "sidecar.json", folder / "sidecar.log"
    file.write_bytes(launch.to_json())
    with log.open("wb") as out:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "deepinfer.engine_shim", str(file), stdout=out, stderr=out
        )
    client = EngineClient(f"unix:{launch.socket}")
    try:
        yield Sidecar(client, process, log)
    finally:
        await client.close()
        if process.returncode is None:
            process.kill()
            await process.wait()
