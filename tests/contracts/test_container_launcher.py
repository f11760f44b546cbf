"""What only containers have: what is left of others, logs and sidecars apart from their engine, ports and keys."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import aclosing
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from deepinfer.agent.containers.container_log import POSITION
from deepinfer.agent.containers.creation import container_name
from deepinfer.agent.containers.failures import ContainerRefused, ImageUnusable
from deepinfer.agent.engine_folders import engine_folder, launch_file
from deepinfer.agent.launching import Mark
from deepinfer.engine_shim.client import EngineClient, ShimPhase
from deepinfer.fleet.launch import EngineLaunch
from tests.alive import is_alive
from tests.docker_engine import DockerEngine
from tests.docker_images import no_server_image, sim_image
from tests.gateway_parts import until
from tests.program_nodes import ContainerNode, container_node, looked_after, next_agent, printed
from tests.small_disk import small_disk

SLEEPS = "import time; print('up', flush=True); time.sleep(600)"
COUNTS = """
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
for number in range(9):
    print("line", number, flush=True)
    signal.sigwait([signal.SIGUSR1])
"""


async def test_what_is_left_of_another_epoch_goes_before_the_next_one_comes(node: ContainerNode) -> None:
    old = await node.start(SLEEPS)
    new = await node.start(SLEEPS, epoch=2)
    assert (new.mark.epoch, new.is_adopted) == (2, False)
    assert not is_alive(old.pid)
    assert [engine.mark for engine in await node.launcher.running()] == [new.mark]


async def test_a_container_that_never_began_is_no_engine_and_makes_room(node: ContainerNode) -> None:
    mark = Mark("chat-aaaaa-0", 1, node.instance)
    labels = {f"deepinfer.{name}": str(getattr(mark, name)) for name in ("placement", "epoch", "instance")}
    left = node.docker.docker.containers.create(sim_image(node.docker), name=container_name(mark), labels=labels)
    (found,) = await node.launcher.running()
    assert (found.seen.id, found.mark, found.is_whole) == (left.id, mark, False)
    engine = await node.start(SLEEPS)
    assert [each.seen.id for each in await node.launcher.running()] == [engine.seen.id]


async def test_one_whose_agent_died_before_it_had_a_sidecar_is_not_whole(node: ContainerNode) -> None:
    """What its sidecar has to be told, its key for one, stands in no file yet: only the run before's may."""
    async with looked_after(first := await node.start(SLEEPS)):
        await until(node.sidecar_processes)
    await first.kill()
    second = await node.start(SLEEPS)
    (found,) = await node.launcher.running()
    assert (found.seen.id, found.is_whole) == (second.seen.id, False)


async def test_a_start_that_is_cancelled_leaves_nothing(node: ContainerNode) -> None:
    actions: list[str] = []
    created = asyncio.Event()

    def hear(_: str, action: str) -> None:
        actions.append(action)
        if action == "create":
            created.set()

    forget = node.daemon.listen(hear)
    starting = asyncio.create_task(node.start(SLEEPS))
    await created.wait()
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    forget()
    assert node.left() == []


async def test_the_log_goes_on_with_the_next_agent_where_it_was(node: ContainerNode) -> None:
    engine = await node.start(COUNTS)
    async with looked_after(engine):
        await until(lambda: "line 0\n" in printed(node, engine))
        os.kill(engine.pid, signal.SIGUSR1)
        await until(lambda: "line 1\n" in printed(node, engine))
        await until(node.sidecar_processes)
        (sidecar,) = node.sidecar_processes()
    os.kill(engine.pid, signal.SIGUSR1)  # nobody reads line 2 now
    async with next_agent(node.home, node.docker, node.instance) as later:
        (adopted,) = await later.launcher.running()
        async with looked_after(adopted):
            await until(lambda: "line 2\n" in printed(node, engine))
            os.kill(engine.pid, signal.SIGUSR1)
            await until(lambda: "line 3\n" in printed(node, engine))
            assert later.sidecar_processes() == [sidecar]
    lines = [line for line in printed(node, engine).splitlines() if line.startswith("line")]
    assert lines == ["line 0", "line 1", "line 2", "line 3"]


async def test_a_full_disk_costs_lines_and_neither_the_container_nor_its_sidecar(
    tmp_path: Path, docker_engine: DockerEngine
) -> None:
    with small_disk(tmp_path / "disk") as disk:
        async with container_node(disk.folder, docker_engine) as node:
            engine = await node.start(COUNTS)
            async with looked_after(engine) as end:
                await until(lambda: "line 0\n" in printed(node, engine))
                await until(node.sidecar_processes)
                (sidecar,) = node.sidecar_processes()
                disk.fill()
                os.kill(engine.pid, signal.SIGUSR1)  # line 1 is lost
                sidecar.kill()
                await until(lambda: sidecar not in (now := node.sidecar_processes()) and now)
                assert not node.daemon.trouble and not end.done()
                disk.make_room()
                os.kill(engine.pid, signal.SIGUSR1)
                await until(lambda: "line 2\n" in printed(node, engine))
                assert not end.done()


async def test_damaged_notes_of_an_earlier_agent_cost_nothing_until_they_are_needed(node: ContainerNode) -> None:
    engine = await node.start(COUNTS)
    async with looked_after(engine):
        await until(lambda: "line 0\n" in printed(node, engine))
        await until(node.sidecar_processes)
        (sidecar,) = node.sidecar_processes()
    folder = engine_folder(node.engines, engine.mark.placement)
    for file in (folder / POSITION, launch_file(folder)):
        file.write_bytes(b"\xff\x00")
    async with next_agent(node.home, node.docker, node.instance) as later:
        (adopted,) = await later.launcher.running()
        async with looked_after(adopted) as end:
            os.kill(engine.pid, signal.SIGUSR1)
            await until(lambda: "line 1\n" in printed(node, engine))
            assert later.sidecar_processes() == [sidecar] and not end.done()
            sidecar.kill()
            seen = await end
    assert seen.is_sure and f"{launch_file(folder)} was damaged" in (seen.reason or "")


async def test_a_sidecar_that_dies_is_replaced_and_the_container_knows_nothing_of_it(node: ContainerNode) -> None:
    engine = await node.run(node.wanted())
    client = EngineClient(f"unix:{engine.socket}")
    async with looked_after(engine) as end:
        await ready(client)
        (sidecar,) = node.sidecar_processes()
        sidecar.kill()
        await until(lambda: sidecar not in (now := node.sidecar_processes()) and now)
        await ready(client)
        assert not end.done()
        assert (await client.info()).http_endpoint == engine.seen.endpoint
    await client.close()
    assert psutil.Process(engine.pid).is_running()


async def ready(client: EngineClient) -> None:
    await client.info(timeout_seconds=30, wait_for_ready=True)
    async with aclosing(client.watch()) as states:  # type: ignore[type-var]
        async for state in states:
            if state.phase is ShimPhase.READY:
                return
    raise AssertionError("the sidecar ended before its engine was ready")


async def test_a_container_that_somebody_removes_is_told_as_that(node: ContainerNode) -> None:
    engine = await node.start(SLEEPS)
    async with looked_after(engine) as end:
        await until(lambda: "up" in printed(node, engine))
        node.docker.docker.containers.get(engine.seen.id).remove(force=True)
        seen = await end
        await engine.kill()  # its sidecar
    assert seen.reason == "ContainerRemoved: somebody removed its container" and seen.is_sure


async def test_a_sidecar_whose_container_is_gone_is_ended_by_the_next_agent(node: ContainerNode) -> None:
    """Its container was removed while no agent was there: it must speak for no other one."""
    engine = await node.start(SLEEPS)
    async with looked_after(engine):
        await until(lambda: node.sidecar_processes() and engine.socket.exists())
    node.docker.docker.containers.get(engine.seen.id).remove(force=True)
    assert node.left()
    assert await node.launcher.running() == []
    assert node.left() == []


@pytest.mark.parametrize("network", ["host", "bridge"])
async def test_its_server_is_for_this_machine_and_for_who_has_its_key(node: ContainerNode, network: str) -> None:
    engine = await node.run(node.wanted(network=network))
    async with looked_after(engine), httpx.AsyncClient(base_url=f"http://{engine.seen.endpoint}") as http:
        client = EngineClient(f"unix:{engine.socket}")
        await ready(client)
        await client.close()
        stranger = await http.get("/v1/models")
        known = await http.get("/v1/models", headers={"Authorization": f"Bearer {engine.seen.api_key}"})
    assert (stranger.status_code, known.status_code) == (401, 200)
    assert [model["id"] for model in known.json()["data"]] == ["chat", "org/model"]
    address, _, port = engine.seen.endpoint.partition(":")
    assert address == "127.0.0.1"
    assert listeners(int(port)) == {"127.0.0.1"}


def listeners(port: int) -> set[str]:
    """The addresses of this machine at which somebody listens on it."""
    there = [each for each in psutil.net_connections("tcp") if each.status == psutil.CONN_LISTEN]
    return {each.laddr[0] for each in there if len(each.laddr) == 2 and each.laddr[1] == port}


async def test_each_run_has_a_key_of_its_own_and_its_sidecar_is_told(node: ContainerNode) -> None:
    keys = set()
    for epoch in (1, 1, 2):
        engine = await node.start(SLEEPS, epoch=epoch)
        file = node.engines / engine.mark.placement / "launch.json"
        async with looked_after(engine):
            await until(file.exists)
            launch = EngineLaunch.model_validate_json(file.read_bytes())
        assert launch.container is not None
        assert (launch.epoch, launch.container.api_key) == (epoch, engine.seen.api_key)
        assert len(engine.seen.api_key) >= 24 and engine.seen.api_key not in repr(engine.seen)
        assert (launch.container.endpoint, launch.container.pid) == (engine.seen.endpoint, engine.pid)
        keys.add(engine.seen.api_key)
        await engine.kill()
    assert len(keys) == 3


@pytest.mark.parametrize(
    ("docker", "failure", "words"),
    [
        (
            {"entrypoint": ("no-such-program",)},
            ImageUnusable,
            "no vLLM server to start: .*no-such-program.*use an image",
        ),
        ({"entrypoint": ("/etc/passwd",)}, ImageUnusable, "no vLLM server to start: .*permission denied.*use an image"),
        ({"network": "nowhere"}, ContainerRefused, "Docker does not run the container: network nowhere not found"),
        ({"user": "nobody-known"}, ContainerRefused, "unable to find user nobody-known"),
        ({"ulimits": {"wat": 1}}, ContainerRefused, "wrong rlimit value: RLIMIT_WAT"),
        ({"memory": "1m"}, ContainerRefused, "[Mm]inimum memory limit"),
        ({"cpus": 4096}, ContainerRefused, "[Rr]ange of CPUs"),
    ],
)
async def test_what_docker_does_not_start_leaves_nothing_and_says_why(
    node: ContainerNode, docker: dict[str, Any], failure: type[Exception], words: str
) -> None:
    with pytest.raises(failure, match=words) as failed:
        await node.run(node.wanted(**docker))
    assert str(failed.value).startswith(f"{failure.__name__}: ")
    assert node.left() == []


async def test_an_image_without_a_server_is_told_with_the_next_step(node: ContainerNode) -> None:
    with pytest.raises(ImageUnusable, match=r'no vLLM server to start: .*"vllm".*use an image'):
        await node.run(node.wanted(image=no_server_image(node.docker)))
    assert node.left() == []
