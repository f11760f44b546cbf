"""The worker: the agent of one node. Its parts, and how it ends.

SIGTERM leaves the engines running; the next start adopts them. A worker that drains first has everything moved to other
nodes; a second SIGTERM does not wait for that. Ctrl-C (SIGINT) stops the engines first; a second one does not wait for
their running requests, a third one not for them.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from importlib.metadata import version
from typing import Any

from docker.errors import APIError

from deepinfer.agent.command_line import told
from deepinfer.agent.containers.daemon import Daemon
from deepinfer.agent.containers.failures import RuntimeUnreachable
from deepinfer.agent.containers.launcher import ContainerLauncher
from deepinfer.agent.containers.sidecar import Sidecars
from deepinfer.agent.hub_model import hub_cache
from deepinfer.agent.inventory import capped, devices_of_this_node
from deepinfer.agent.launching import Launcher
from deepinfer.agent.leaving import leave
from deepinfer.agent.logs_service import serving_logs
from deepinfer.agent.membership import Membership
from deepinfer.agent.models import Models
from deepinfer.agent.native.engine_choice import EnginesHere
from deepinfer.agent.native.launcher import NativeLauncher
from deepinfer.agent.node_agent import NodeAgent
from deepinfer.agent.node_pressure import NodePressure
from deepinfer.agent.node_record import NodeRecord
from deepinfer.agent.own_keys import OwnKeys
from deepinfer.agent.pipeline_key import PipelineKey
from deepinfer.agent.placement_note import PlacementNote
from deepinfer.agent.pressure import Limits
from deepinfer.agent.registration import stay_registered
from deepinfer.agent.simulated_devices import simulated_devices
from deepinfer.agent.state_folder import StateFolder, opened_state
from deepinfer.agent.stop_request import StopRequest
from deepinfer.engine_environments.installed import installed_engines
from deepinfer.fleet import keys, places
from deepinfer.fleet.config import Config, WorkerConfig
from deepinfer.fleet.convergence import keep_converging
from deepinfer.fleet.entry import run_process
from deepinfer.fleet.errors import AnotherFleet, StoreConflict, StoreUnavailable
from deepinfer.fleet.oom_score import spare_this_process
from deepinfer.fleet.resources import Node
from deepinfer.fleet.spec import Backend
from deepinfer.fleet.store import EtcdStore
from deepinfer.fleet.store_access import access_of

_STORE_AGAIN_SECONDS = 1.0

log = logging.getLogger(__name__)


async def run(name: str, config: Config) -> None:
    """Until a signal ends it."""
    stop = StopRequest(drains=config.worker.drain_on_stop)
    stop.install()
    spare_this_process()
    with opened_state(config.worker.state_dir / name) as state:
        found = (*devices_of_this_node(os.environ), *simulated_devices(config.worker.simulated_devices))
        devices = capped(found, config.worker.max_vram_mb)
        engines = EnginesHere(places.engines_dir(), devices)
        daemon = Daemon(os.environ, state.instance)
        key = PipelineKey(config.worker.pipeline_key_file)
        native, containers = _launchers(state, config, engines, daemon, key)
        launchers: dict[Backend, Launcher] = {Backend.NATIVE: native, Backend.DOCKER: containers}
        models = Models(places.cache_dir() / "models", os.environ, config.worker.model_roots)
        membership = Membership(state.path)
        own_keys = OwnKeys(name, membership, PlacementNote(state.path))
        agent = NodeAgent(name, config.worker, state.engines, launchers, models.files, own_keys=own_keys)
        async with serving_logs(state.engines) as logs_endpoint, daemon.followed(), asyncio.TaskGroup() as lives:
            record = NodeRecord(_node(state, config.worker, logs_endpoint, engines, key), engines.engines, daemon)
            pressure = await asyncio.to_thread(_pressure, state, config.worker)
            _press(pressure.sentences, record, agent)
            try:
                await agent.adopt(Backend.NATIVE, lives)
                await daemon.heard_of()
                adopting = lives.create_task(_adopt_containers(daemon, agent, lives))
                if not daemon.trouble:  # else later
                    await asyncio.wait({adopting})
                await _run_until(
                    stop.asked,
                    _look_after_node(record, membership, agent, config, lives),
                    _follow_pressure(pressure, record, agent),
                    _leave_when_told(stop, record, agent, config.worker.drain_deadline_seconds),
                )
                adopting.cancel()
                if stop.engines_too:
                    await _stop_engines(agent, config, stop)
            finally:
                await agent.let_go()


def _launchers(
    state: StateFolder, config: Config, engines: EnginesHere, daemon: Daemon, key: PipelineKey
) -> tuple[NativeLauncher, ContainerLauncher]:
    sockets, stall_seconds = places.runtime_dir(), config.worker.stall_seconds
    native = NativeLauncher(
        state.instance,
        state.engines,
        sockets,
        os.environ,
        stall_seconds=stall_seconds,
        environment_for=engines.environment_for,
        pipeline_for=lambda placement: key.launch(placement, config.worker.pipeline_host),
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


async def _adopt_containers(daemon: Daemon, agent: NodeAgent, lives: asyncio.TaskGroup) -> None:
    """Once: what runs later is known."""
    while True:
        await daemon.reachable()
        with suppress(RuntimeUnreachable, APIError):
            await agent.adopt(Backend.DOCKER, lives)
            return


async def _run_until(asked: asyncio.Event, *works: Coroutine[Any, Any, None]) -> None:
    async with asyncio.TaskGroup() as tasks:
        working = [tasks.create_task(work) for work in works]
        await asked.wait()
        for work in working:
            work.cancel()


async def _follow_pressure(pressure: NodePressure, record: NodeRecord, agent: NodeAgent) -> None:
    """Never returns."""
    async for sentences in pressure.changes():
        _press(sentences, record, agent)


def _press(sentences: tuple[str, ...], record: NodeRecord, agent: NodeAgent) -> None:
    record.press(sentences)
    agent.close(record.closed)


async def _leave_when_told(stop: StopRequest, record: NodeRecord, agent: NodeAgent, deadline_seconds: float) -> None:
    await stop.drain.wait()
    await leave(record, agent, deadline_seconds)
    stop.asked.set()


async def _look_after_node(
    record: NodeRecord, membership: Membership, agent: NodeAgent, config: Config, lives: asyncio.TaskGroup
) -> None:
    """Never returns."""
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(record.follow_fleet(membership))
        tasks.create_task(record.follow_engines())
        tasks.create_task(record.follow_containers())
        tasks.create_task(_stay_in_the_fleet(record, agent, config, lives))


async def _stay_in_the_fleet(record: NodeRecord, agent: NodeAgent, config: Config, lives: asyncio.TaskGroup) -> None:
    """Never returns. A store that does not answer yet is waited for, and what was placed here last is kept running."""
    told = False
    while True:
        try:
            async with EtcdStore.connect(config.etcd.addresses, access=access_of(config.etcd)) as store:
                await follow_the_fleet(store, record, agent, config, lives)
        except StoreUnavailable as error:
            if not told:
                log.warning("%s Waiting for it; engines that run are left alone.", error)
            told = True
            agent.converge_alone(lives)
        await asyncio.sleep(_STORE_AGAIN_SECONDS)


async def follow_the_fleet(
    store: EtcdStore, record: NodeRecord, agent: NodeAgent, config: Config, lives: asyncio.TaskGroup
) -> None:
    """Keep the node's record and its replicas true, by one store. Never returns."""
    registered = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(stay_registered(store, record, config.worker.lease_seconds, registered))
        await registered.wait()  # until then another worker may have this name, and these placements
        tasks.create_task(agent.follow(store, keys.placement(record.node.name, "")))
        tasks.create_task(agent.follow(store, keys.LAYOUTS))
        tasks.create_task(agent.follow(store, keys.IDENTITY))
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
        async with EtcdStore.connect(config.etcd.addresses, access=access_of(config.etcd)) as store:
            await agent.report(store)
    except (StoreUnavailable, StoreConflict, AnotherFleet) as error:
        log.warning("the engines are stopped, but that could not be told: %s", error)


def _node(state: StateFolder, config: WorkerConfig, logs_endpoint: str, engines: EnginesHere, key: PipelineKey) -> Node:
    return Node(
        name=state.path.name,
        instance=state.instance,
        agent_endpoint=logs_endpoint,
        devices=engines.devices,
        engines=installed_engines(engines.engines),
        labels=config.labels,
        pipeline_key=key.fingerprint,
        version=version("deepinfer"),
    )


def _pressure(state: StateFolder, config: WorkerConfig) -> NodePressure:
    """As it is now."""
    limits = Limits(config.low_memory_share, config.low_disk_share, config.low_disk_bytes)
    hub = hub_cache(os.environ)
    pressure = NodePressure((state.path,), (places.cache_dir(), *((hub,) if hub else ())), limits)
    pressure.look()
    return pressure


def main(arguments: Sequence[str] | None = None) -> int:
    return run_process(lambda: run(*told(arguments)))
