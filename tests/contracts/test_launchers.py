"""What any launcher must do, with real processes and real containers: obedient programs, and some that are not."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from deepinfer.agent.engine_folders import engine_folder
from deepinfer.agent.engine_log import last_useful_line
from deepinfer.agent.launching import Exit, LaunchedEngine
from tests.alive import is_alive
from tests.gateway_parts import until
from tests.program_nodes import STAYS, ProgramNode, container_node, looked_after, native_node, printed

OBEYS = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(print("as you wish", flush=True)))
print("up", flush=True)
time.sleep(600)
"""
FAILS = "import sys; print('Traceback'); print('ValueError: no such layer'); print('bye'); sys.exit(7)"
HUNGRY = """
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
print("up", flush=True)
signal.sigwait([signal.SIGUSR1])
bytearray(256 << 20)
"""


@pytest.fixture(params=["native", "container"])
async def node(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[ProgramNode]:
    monkeypatch.setattr("deepinfer.agent.native.engine_process.KILL_AFTER_SECONDS", 1)
    monkeypatch.setattr("deepinfer.agent.containers.container.STOP_SECONDS", 1)
    monkeypatch.setattr("deepinfer.agent.containers.launcher._BETWEEN_STARTS_SECONDS", 0)
    if request.param == "native":
        async with native_node(tmp_path) as native:
            yield native
    else:
        async with container_node(tmp_path, request.getfixturevalue("docker_engine")) as containers:
            yield containers


@pytest.fixture
async def another_agents(
    request: pytest.FixtureRequest, node: ProgramNode, tmp_path: Path
) -> AsyncIterator[ProgramNode]:
    """Node, of the same kind and on the same machine."""
    if "native" in request.node.callspec.id:
        async with native_node(tmp_path / "another") as native:
            yield native
    else:
        async with container_node(tmp_path / "another", request.getfixturevalue("docker_engine")) as containers:
            yield containers


def identity(engine: LaunchedEngine) -> tuple[str, int, float, Path]:
    return str(engine.mark), engine.pid, engine.created, engine.socket


async def until_adoptable(node: ProgramNode, engine: LaunchedEngine) -> None:
    """It runs, and what the next agent has to know of it is written down."""
    launch_file = engine_folder(node.engines, engine.mark.placement) / "launch.json"
    await until(lambda: "up" in printed(node, engine) and launch_file.exists())


async def test_a_second_start_of_the_same_placement_adopts_the_first(node: ProgramNode) -> None:
    first = await node.start(OBEYS)
    async with looked_after(first):
        await until_adoptable(node, first)
        second = await node.start(OBEYS)
        assert identity(second) == identity(first)
        assert (first.is_adopted, second.is_adopted) == (False, True)
        (found,) = await node.launcher.running()
        assert identity(found) == identity(first)
        assert found.is_adopted and found.is_whole
    await first.kill()
    assert await node.launcher.running() == []
    assert node.left() == []


async def test_an_engine_of_another_agent_is_not_seen(node: ProgramNode, another_agents: ProgramNode) -> None:
    theirs = await another_agents.start(OBEYS)
    assert await node.launcher.running() == []
    assert node.launcher.owner(psutil.Process(theirs.pid)) is None
    ours = await node.start(OBEYS)
    assert identity(ours) != identity(theirs)
    assert [identity(found) for found in await node.launcher.running()] == [identity(ours)]


async def test_an_engine_outlives_the_agent_that_let_go_of_it(node: ProgramNode) -> None:
    engine = await node.start(OBEYS)
    async with looked_after(engine):
        await until_adoptable(node, engine)
    assert is_alive(engine.pid)
    (adopted,) = await node.launcher.running()
    async with looked_after(adopted) as end:
        await adopted.terminate()
        await end
    assert not is_alive(engine.pid)
    assert node.left() == []


async def test_a_stop_is_asked_for_first(node: ProgramNode) -> None:
    engine = await node.start(OBEYS)
    async with looked_after(engine) as end:
        await until(lambda: "up" in printed(node, engine))
        await engine.terminate()
        assert (await end).reason is None
    assert "as you wish" in printed(node, engine)
    assert node.left() == []


@pytest.mark.parametrize("way", ["terminate", "kill"])
async def test_one_that_has_hardly_begun_is_ended_too(node: ProgramNode, way: str) -> None:
    engine = await node.start(OBEYS)
    async with looked_after(engine) as end:
        await getattr(engine, way)()
        await end
        await engine.kill()  # as an agent does after any end
    assert node.left() == []


@pytest.mark.parametrize("way", ["terminate", "kill"])
async def test_all_of_an_engine_that_ignores_sigterm_is_ended(node: ProgramNode, way: str) -> None:
    engine = await node.start(STAYS)
    async with looked_after(engine) as end:
        await until(lambda: printed(node, engine).count("up") == 3)
        processes = [psutil.Process(engine.pid), *psutil.Process(engine.pid).children(recursive=True)]
        owners = {str(node.launcher.owner(process)) for process in processes}
        await getattr(engine, way)()
        assert (await end).reason is None
    assert len(processes) == 3 and owners == {str(engine.mark)}
    assert not any(is_alive(process.pid) for process in processes)
    assert node.left() == []


async def test_the_exit_status_and_the_last_lines_of_a_failure_are_kept(node: ProgramNode) -> None:
    engine = await node.start(FAILS)
    assert await engine.ended() == Exit(7)
    await engine.kill()
    assert last_useful_line(engine_folder(node.engines, engine.mark.placement)) == "ValueError: no such layer"
    assert node.left() == []


async def test_the_log_of_the_run_before_is_kept(node: ProgramNode) -> None:
    first = await node.start(FAILS)
    await first.ended()
    await first.kill()
    second = await node.start(OBEYS)
    async with looked_after(second):
        await until(lambda: "up" in printed(node, second))
    assert "no such layer" in printed(node, second, previous=True)
    assert "no such layer" not in printed(node, second)


async def test_what_it_prints_is_in_its_log_as_it_comes(node: ProgramNode) -> None:
    tells = "import signal\nfor n in range(9):\n print(f'line {n}', flush=True)\n signal.sigwait([signal.SIGUSR1])"
    engine = await node.start("import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])\n" + tells)
    async with looked_after(engine):
        for number in range(3):
            await until(lambda line=f"line {number}\n": line in printed(node, engine))  # type: ignore[misc]
            os.kill(engine.pid, signal.SIGUSR1)


async def test_a_kill_from_outside_is_told_by_its_signal(node: ProgramNode) -> None:
    engine = await node.start(OBEYS)
    async with looked_after(engine) as end:
        await until(lambda: "up" in printed(node, engine))
        os.kill(engine.pid, signal.SIGKILL)
        assert await end == Exit(-signal.SIGKILL)


async def test_running_out_of_memory_has_a_name_and_the_limit(node: ProgramNode) -> None:
    engine = await node.start(HUNGRY, memory_bytes=64 << 20)
    async with looked_after(engine) as end:
        await until(lambda: "up" in printed(node, engine))
        os.kill(engine.pid, signal.SIGUSR1)
        seen = await end
    assert seen.status == -signal.SIGKILL
    assert seen.reason is not None and "memory" in seen.reason
    assert "64 MiB" in seen.reason or "0.1 GiB" in seen.reason
