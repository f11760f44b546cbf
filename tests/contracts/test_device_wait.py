"""Before an engine starts: left-overs of earlier ones are ended, whatever runs engines on the node."""

from __future__ import annotations

from pathlib import Path

from deepinfer.agent.containers.daemon import Daemon
from deepinfer.agent.containers.launcher import ContainerLauncher
from deepinfer.agent.containers.sidecar import Sidecars
from deepinfer.agent.device_wait import until_devices_are_free
from deepinfer.agent.launching import Launcher
from deepinfer.agent.simulated_devices import devices_below
from deepinfer.agent.workshop import Workshop
from deepinfer.fleet.config import WorkerConfig
from deepinfer.fleet.spec import Backend, DeploymentSpec
from tests.gateway_parts import until
from tests.program_nodes import native_node

HOLDS = """
import fcntl, sys, time
lock = open({path!r}, "w")
fcntl.flock(lock, fcntl.LOCK_EX)
time.sleep(600)
"""


async def no_model(spec: DeploymentSpec, progress: object) -> Path | None:
    return None


async def test_a_native_left_over_is_ended_on_a_node_without_docker(tmp_path: Path) -> None:
    async with native_node(tmp_path) as node:
        locks = devices_below(tmp_path)
        (file,) = locks.of(("sim:0",))
        engine = await node.start(HOLDS.format(path=str(file)))
        await until(lambda: locks.holder("sim:0") == engine.pid)

        nowhere = Daemon({"DOCKER_HOST": f"unix://{tmp_path}/no-docker.sock"}, node.instance)
        sidecars = Sidecars(node.instance, node.sockets, {})
        launchers: dict[Backend, Launcher] = {
            Backend.NATIVE: node.launcher,
            Backend.DOCKER: ContainerLauncher(nowhere, sidecars, node.engines, {}),
        }
        workshop = Workshop(
            "node-1", WorkerConfig(), node.engines, launchers, no_model, frozenset, lambda matters_at_once: None
        )
        waits: list[str] = []
        await until_devices_are_free(("sim:0",), workshop, lambda wait: waits.append(wait.message))
        assert locks.holder("sim:0") is None
        assert node.left() == [] and waits == []
