"""A node whose engines are timers. All between them and the store is the agent's own: lease, key, watch, plan.

Its statuses name no endpoint, because nothing answers there: so the router connects to none of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from pathlib import Path

from benchmarks.fleet.telling import tell
from deepinfer.agent.launching import LaunchedEngine
from deepinfer.agent.membership import Membership
from deepinfer.agent.node_agent import NodeAgent
from deepinfer.agent.own_keys import OwnKeys
from deepinfer.agent.plan import Stage
from deepinfer.agent.replica import Replica
from deepinfer.agent.simulated_devices import simulated_devices
from deepinfer.engine_environments.installed import own_engines
from deepinfer.etcd.watch import nobody_asks
from deepinfer.fleet.config import WorkerConfig
from deepinfer.fleet.resources import Node, Phase, Placement
from deepinfer.fleet.spec import DeploymentSpec
from deepinfer.fleet.store import EtcdStore

DEVICES = 8
_PREPARING_SECONDS = 0.2
_STARTING_SECONDS = 0.8


def node_name(number: int) -> str:
    return f"node-{number:04}"


def simulated_node(number: int) -> Node:
    return Node(
        name=node_name(number),
        instance=f"{number:016x}",
        agent_endpoint="127.0.0.1:9",  # the discard service: nobody asks for logs here
        devices=simulated_devices(DEVICES),
        engines=own_engines(),
        version="0",
    )


class SimulatedReplica(Replica):
    """Its engine is ready after a second and ends when asked."""

    async def _live(self, origin: Placement | LaunchedEngine) -> None:
        await asyncio.sleep(_PREPARING_SECONDS)
        self._stage = Stage.RUNNING
        self._publish(phase=Phase.STARTING, message="", pid=1)
        await asyncio.sleep(_STARTING_SECONDS)
        self._publish(phase=Phase.READY)
        await self._ending.wait()
        self._gone()


class SimulatedAgent(NodeAgent):
    """Tells which deployments' generations its readings show for the first time."""

    def __init__(self, name: str, config: WorkerConfig, folder: Path) -> None:
        super().__init__(name, config, folder, {}, _no_files, own_keys=OwnKeys(name, Membership(folder)))
        self._shown: set[tuple[str, int]] = set()

    def _act(self, tasks: asyncio.TaskGroup) -> set[str]:
        placements = self._own.known.wanted.placements if self._own.known else ()
        shown = {(placement.deployment, placement.generation) for placement in placements}
        for deployment, generation in shown - self._shown:
            tell(deployment=deployment, generation=generation)
        self._shown |= shown
        return super()._act(tasks)

    def _replica(self, placement_id: str) -> Replica:
        if placement_id not in self._replicas:
            self._replicas[placement_id] = SimulatedReplica(placement_id, self._workshop)
        return self._replicas[placement_id]


class TellingStore(EtcdStore):
    """Tells how far each of its watches has come."""

    async def changes(self, prefix: str, connected: Callable[[bool], None] = nobody_asks) -> AsyncGenerator[int, None]:
        async with aclosing(super().changes(prefix, connected)) as revisions:
            async for revision in revisions:
                tell(watch=prefix, revision=revision)
                yield revision


async def _no_files(spec: DeploymentSpec, progress: Callable[[str], None]) -> Path | None:
    return None
