"""The worker: the agent of one node. Its parts, and how it ends.

SIGTERM leaves the engines running; the next start adopts them. Ctrl-C (SIGINT) stops them first; a second one does not
wait for their running requests, a third one not for them.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from docker.errors import APIError
from pydantic import TypeAdapter, ValidationError

from deepinfer.agent.containers.daemon import Daemon
from deepinfer.agent.containers.failures import RuntimeUnreachable
from deepinfer.agent.containers.launcher import ContainerLauncher
from deepinfer.agent.containers.sidecar import Sidecars
from deepinfer.agent.inventory import devices_of_this_node
from deepinfer.agent.launching import Launcher
from deepinfer.agent.logs_service import serving_logs
from deepinfer.agent.models import Models
from deepinfer.agent.native.engine_choice import EnginesHere
from deepinfer.agent.native.launcher import NativeLauncher
from deepinfer.agent.node_agent import NodeAgent
from deepinfer.agent.node_record import NodeRecord
from deepinfer.agent.registration import stay_registered
from deepinfer.agent.simulated_devices import simulated_devices
from deepinfer.agent.state_folder import StateFolder, opened_state
from deepinfer.engine_environments.installed import installed_engines
from deepinfer.fleet import keys, places
from deepinfer.fleet.config import Config, InvalidConfig, load_config
from deepinfer.fleet.convergence import keep_converging
from deepinfer.fleet.entry import run_process
from deepinfer.fleet.errors import StoreUnavailable
from deepinfer.fleet.oom_score import spare_this_process
from deepinfer.fleet.resources import Backend, Name, Node
from deepinfer.fleet.store import EtcdStore

_STORE_AGAIN_SECONDS = 1.0

log = logging.getLogger(__name__)


class StopRequest:
    """What the signals asked for so far."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.hurry = asyncio.Event()
        self.leave = asyncio.Event()  # also what cannot be ended
        self.engines_too = False

    def install(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self.asked.set)
        loop.add_signal_handler(signal.SIGINT, self._interrupted)

    def _interrupted(self) -> None:
        if self.hurry.is_set():
            self.leave.set()
        if self.engines_too:
            self.hurry.set()
        self.engines_too = True
        self.asked.set()


async def run(name: str, config: Config) -> None:
    """Until a signal ends it."""
    stop = StopRequest()
    stop.install()
    spare_this_process()
    with opened_state(config.worker.state_dir / name) as state:
        devices = (*devices_of_this_node(os.environ), *simulated_devices(config.worker.simulated_devices))
        engines = EnginesHere(places.engines_dir(), devices)
        daemon = Daemon(os.environ, state.instance)
        native, containers = _launchers(state, config, engines, daemon)
        launchers: dict[Backend, Launcher] = {Backend.NATIVE: native, Backend.DOCKER: containers}
        models = Models(places.cache_dir() / "models", os.environ)
        agent = NodeAgent(name, config.worker, state.engines, launchers, models.files)
        async with serving_logs(state.engines) as logs_endpoint, daemon.followed(), asyncio.TaskGroup() as lives:
            record = NodeRecord(_node(name, state, logs_endpoint, engines), engines.engines, daemon)
            try:
                await agent.adopt(native, lives)
                await daemon.heard_of()
                adopting = lives.create_task(_adopt_containers(daemon, agent, containers, lives))
                if not daemon.trouble:  # else later; a replica that starts meanwhile finds its container itself
                    await asyncio.wait({adopting})
                await _run_until(stop.asked, _look_after_node(record, agent, config, lives))
                adopting.cancel()
                if stop.engines_too:
                    await _stop_engines(agent, config, stop)
            finally:
                await agent.let_go()


def _launchers(
    state: StateFolder, config: Config, engines: EnginesHere, daemon: Daemon
) -> tuple[NativeLauncher, ContainerLauncher]:
    sockets, stall_seconds = places.runtime_dir(), config.worker.stall_seconds
    native = NativeLauncher(
        state.instance,
        state.engines,
        sockets,
        os.environ,
        stall_seconds=stall_seconds,
        environment_for=engines.environment_for,
    )
    containers = ContainerLauncher(
        daemon,
        Sidecars(state.instance, sockets, os.environ),
        state.engines,
        os.environ,
        mountable=config.worker.container_mounts,
        stall_seconds=stall_seconds,
    )
    return native, containers


async def _adopt_containers(
    daemon: Daemon, agent: NodeAgent, containers: ContainerLauncher, lives: asyncio.TaskGroup
) -> None:
    """Once: what runs later is known."""
    while True:
        await daemon.reachable()
        with suppress(RuntimeUnreachable, APIError):
            await agent.adopt(containers, lives)
            return


async def _run_until(asked: asyncio.Event, work: Coroutine[Any, Any, None]) -> None:
    async with asyncio.TaskGroup() as tasks:
        working = tasks.create_task(work)
        await asked.wait()
        working.cancel()


async def _look_after_node(record: NodeRecord, agent: NodeAgent, config: Config, lives: asyncio.TaskGroup) -> None:
    """Never returns."""
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(record.follow_engines())
        tasks.create_task(record.follow_containers())
        tasks.create_task(_stay_in_the_fleet(record, agent, config, lives))


async def _stay_in_the_fleet(record: NodeRecord, agent: NodeAgent, config: Config, lives: asyncio.TaskGroup) -> None:
    """Never returns. A store that does not answer yet is waited for: adopted engines need none."""
    told = False
    while True:
        try:
            async with EtcdStore.connect(config.etcd.addresses) as store:
                await _follow_the_fleet(store, record, agent, config, lives)
        except StoreUnavailable as error:
            if not told:
                log.warning("%s Waiting for it; engines that run are left alone.", error)
            told = True
        await asyncio.sleep(_STORE_AGAIN_SECONDS)


async def _follow_the_fleet(
    store: EtcdStore, record: NodeRecord, agent: NodeAgent, config: Config, lives: asyncio.TaskGroup
) -> None:
    registered = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(stay_registered(store, record, config.worker.lease_seconds, registered))
        await registered.wait()  # until then another worker may have this name, and these placements
        tasks.create_task(store.follow(keys.placement(record.node.name, ""), agent.changed))
        tasks.create_task(keep_converging(lambda: agent.converge(store, lives), agent.changed))
        print(f"deepinfer worker {record.node.name}: ready", flush=True)


async def _stop_engines(agent: NodeAgent, config: Config, stop: StopRequest) -> None:
    print("stopping this node's engines first; press Ctrl-C again not to wait for their running requests", flush=True)
    work = agent.stop_all(lambda placement_id: print(f"stopping {placement_id}", flush=True), stop.hurry)
    stopping, leaving = asyncio.create_task(work), asyncio.create_task(stop.leave.wait())
    await asyncio.wait({stopping, leaving}, return_when=asyncio.FIRST_COMPLETED)
    leaving.cancel()
    if not stopping.done():  # such as a container of a Docker that hangs
        stopping.cancel()
        print("leaving what has not ended; the next worker of this name looks after it", flush=True)
    try:
        async with EtcdStore.connect(config.etcd.addresses) as store:
            await agent.report(store)
    except StoreUnavailable as error:
        log.warning("the engines are stopped, but that could not be told: %s", error)


def _node(name: str, state: StateFolder, logs_endpoint: str, engines: EnginesHere) -> Node:
    return Node(
        name=name,
        instance=state.instance,
        agent_endpoint=logs_endpoint,
        devices=engines.devices,
        engines=installed_engines(engines.engines),
        version=version("deepinfer"),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    return run_process(lambda: run(_checked_name(given.name), _config(given)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m deepinfer.agent", description="Run engines on this machine.")
    parser.add_argument("-n", "--name", required=True, help="this node's name in the fleet")
    parser.add_argument("-c", "--config", type=Path, help="a TOML file; configs/default.toml shows every key")
    parser.add_argument("--etcd", nargs="+", metavar="HOST:PORT", help="where the fleet's store is")
    parser.add_argument("--state-dir", type=Path, help="where logs and records of this machine's nodes are kept")
    return parser


def _checked_name(name: str) -> str:
    try:
        return TypeAdapter(Name).validate_python(name)
    except ValidationError as error:
        raise InvalidConfig(
            f'"{name}" cannot be a node\'s name; use lower-case letters, digits, "-", "_" and ".", 63 at most.'
        ) from error


def _config(given: argparse.Namespace) -> Config:
    config = load_config(given.config)
    etcd = config.etcd.model_copy(update={"endpoints": tuple(given.etcd)}) if given.etcd else config.etcd
    worker = config.worker.model_copy(update={"state_dir": given.state_dir}) if given.state_dir else config.worker
    return config.model_copy(update={"etcd": etcd, "worker": worker})
