"""What a shim does when its engine breaks or stops: every open answer hears why, at once, and the shim ends."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path

import psutil
import pytest

from deepinfer.engine_shim.client import EngineCall, EngineClient, GenerateRequest
from deepinfer.engine_shim.failure import why_it_failed
from deepinfer.engine_shim.loading import loaded
from deepinfer.engine_shim.status import ShimStatus
from deepinfer.engine_shim.token_engine import FinishReason, SamplingParams
from deepinfer.fleet.errors import EngineFailed
from deepinfer.fleet.launch import EngineLaunch
from deepinfer.fleet.spec import EngineKind
from tests.alive import is_alive
from tests.fleet import eventually
from tests.sim_engine import SimProcess, sim_process

STREAMS = 16
BODY = {"model": "chat", "prompt": "hello", "max_tokens": 2000, "ignore_eos": True, "stream": True}


def core_of(sim: SimProcess) -> psutil.Process:
    (core,) = psutil.Process(sim.process.pid).children()
    return core


async def broken_off(client: EngineClient, going: asyncio.Semaphore) -> str:
    """Why a stream ended that never comes to its end by itself."""
    answer = await client.call(EngineCall("POST", "/v1/completions", b"", (), json.dumps(BODY).encode()))
    going.release()
    try:
        await answer.read()
    except EngineFailed as error:
        return str(error)
    return "it ended as if it were whole"


async def reasons_after(sim: SimProcess, number: signal.Signals) -> list[str]:
    """What became of 16 running streams when the core got this signal."""
    client, going = EngineClient(sim.endpoint), asyncio.Semaphore(0)
    try:
        async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
            streams = [tasks.create_task(broken_off(client, going)) for _ in range(STREAMS)]
            for _ in range(STREAMS):
                await going.acquire()
            os.kill(core_of(sim).pid, number)
        return [stream.result() for stream in streams]
    finally:
        await client.close()


async def test_a_killed_core_ends_every_answer_with_the_reason(tmp_path: Path) -> None:
    async with sim_process(tmp_path, core_process=True) as sim:
        pid = core_of(sim).pid
        assert set(await reasons_after(sim, signal.SIGKILL)) == {f"its core (process {pid}) was killed by SIGKILL"}
        assert await asyncio.wait_for(sim.process.wait(), 20) == 1


async def test_a_stopped_core_is_found_by_its_missing_tokens(tmp_path: Path) -> None:
    async with sim_process(tmp_path, core_process=True, stall_seconds=1) as sim:
        (reason,) = set(await reasons_after(sim, signal.SIGSTOP))
        assert "it computed nothing for" in reason and "with 16 requests in hand" in reason
        assert await asyncio.wait_for(sim.process.wait(), 20) == 1


async def test_without_a_limit_a_stopped_core_is_left_alone(tmp_path: Path) -> None:
    async with sim_process(tmp_path, core_process=True, stall_seconds=0) as sim:
        client, going = EngineClient(sim.endpoint), asyncio.Semaphore(0)
        stream = asyncio.create_task(broken_off(client, going))
        await going.acquire()
        core = core_of(sim)
        core.suspend()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(stream), 3)
        core.resume()
        core.kill()
        assert "SIGKILL" in await stream
        await client.close()


async def test_a_typed_answer_is_failed_too(tmp_path: Path) -> None:
    async with sim_process(tmp_path, core_process=True) as sim:
        sampling = SamplingParams(max_tokens=2000, ignore_eos=True)
        deltas = sim.client.generate(GenerateRequest("r", (1, 2, 3), sampling)).__aiter__()
        await anext(deltas)
        core_of(sim).kill()
        last = [delta async for delta in deltas][-1]
        assert last.finish_reason is FinishReason.ERROR and "killed by SIGKILL" in last.error


async def test_an_idle_engine_that_breaks_is_seen_without_a_request(tmp_path: Path) -> None:
    async with sim_process(tmp_path, core_process=True) as sim:
        core_of(sim).kill()
        assert await asyncio.wait_for(sim.process.wait(), 20) == 1


async def test_a_request_that_hangs_by_itself_ends_no_engine(tmp_path: Path) -> None:
    """Its reader went to sleep, so it stays in hand; the engine still makes tokens when it is asked."""
    async with sim_process(tmp_path, stall_seconds=1, seconds_per_output_token=0.0, kv_blocks=100_000) as sim:
        client = EngineClient(sim.endpoint)
        deltas = client.generate(GenerateRequest("r", (1,), SamplingParams(max_tokens=8000, ignore_eos=True)))
        pieces = deltas.__aiter__()
        await anext(pieces)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(sim.process.wait(), 4)
        await client.close()


async def test_a_core_that_hangs_while_idle_is_found_by_one_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepinfer.engine_shim.failure._ASK_IDLE_SECONDS", 0.2)
    launch = EngineLaunch(
        placement="chat-aaaaa-0",
        epoch=1,
        engine=EngineKind.SIM,
        served_names=("chat",),
        device="cpu",
        engine_args={"core_process": True},
        socket=Path("unused"),
    )
    engine = await loaded(launch, lambda line: None)
    watching = asyncio.create_task(why_it_failed(engine, ShimStatus(launch), 1.0))
    try:
        async with asyncio.timeout(20):
            await asyncio.to_thread(eventually, lambda: engine.work_done() >= 2)  # it is asked, and answers
            children = [child for child in psutil.Process().children() if is_alive(child.pid)]
            (core,) = [child for child in children if "sim_core" in " ".join(child.cmdline())]
            core.suspend()
            assert await watching == "it computed nothing for 1 s with 1 request in hand"
    finally:
        watching.cancel()
        await engine.close()
