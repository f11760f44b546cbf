"""The management API over a real etcd, and a scheduler whose passes a test makes one by one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx

from deepinfer.control_plane.gateway.front_door import FrontDoor
from deepinfer.control_plane.gateway.server import listening
from deepinfer.control_plane.management.app import management_app
from deepinfer.control_plane.scheduler.foresight import with_agents_work
from deepinfer.control_plane.scheduler.scheduler import Scheduler, Surroundings, never_looked
from deepinfer.fleet import keys
from deepinfer.fleet.leadership import Leadership
from deepinfer.fleet.mirror import Mirror
from deepinfer.fleet.resources import Device, Intent, Node, Phase, ReplicaStatus
from deepinfer.fleet.snapshot import Snapshot
from deepinfer.fleet.store import EtcdStore
from tests.fleet_values import installed

Answering = Callable[[], frozenset[tuple[str, int]] | None]


@asynccontextmanager
async def serving(store: EtcdStore, answering: Answering = never_looked) -> AsyncIterator[httpx.AsyncClient]:
    async with (
        Mirror.following(store) as mirror,
        listening(FrontDoor(management_app(lambda: mirror, answering)), "127.0.0.1", 0) as port,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client,
    ):
        yield client


def error_of(answer: httpx.Response) -> dict[str, Any]:
    body = answer.json()
    assert list(body) == ["error"] and set(body["error"]) == {"message", "type", "param", "code"}
    error: dict[str, Any] = body["error"]
    return error


def node(name: str, agent_endpoint: str = "127.0.0.1:1", accelerators: int = 0) -> Node:
    """With a cpu, and simulated devices besides."""
    cpu = Device(id="cpu", kind="cpu", name="CPU", memory_bytes=1)
    sims = tuple(Device(id=f"sim:{i}", kind="sim", name="Sim", memory_bytes=1) for i in range(accelerators))
    engines = (installed(),)
    return Node(
        name=name, instance="i", agent_endpoint=agent_endpoint, devices=(cpu, *sims), engines=engines, version="0"
    )


async def write(store: EtcdStore, *resources: Any) -> None:
    names = {"Deployment": lambda r: keys.deployment(r.name), "Node": lambda r: keys.node(r.name)}
    names |= {"Placement": lambda r: keys.placement(r.node, r.id), "ReplicaStatus": lambda r: keys.status(r.node, r.id)}
    await store.commit({names[type(r).__name__](r): r.to_json() for r in resources})


class Passes:
    """The scheduler's, with what the agents of the nodes would report after each."""

    def __init__(self, store: EtcdStore, scheduler: Scheduler) -> None:
        self._store = store
        self.scheduler = scheduler

    @classmethod
    async def of(cls, store: EtcdStore, answering: Answering = never_looked) -> Passes:
        """Leading as `lead` claims it, without its lease."""
        leadership = Leadership("me", await store.commit({keys.LEADER: b"me"}))
        return cls(store, Scheduler(store, leadership, Surroundings(answering)))

    async def fleet(self) -> Snapshot:
        return (await self._store.view()).fleet

    async def settle(self) -> Snapshot:
        """Until nothing changes any more; every engine of a node that is connected becomes ready."""
        before = None
        while True:
            await self.scheduler.converge()
            fleet = await self.fleet()
            if fleet == before:
                return fleet
            before, after = fleet, with_agents_work(fleet)
            gone = {keys.status(s.node, s.id): None for s in fleet.statuses}
            told = {keys.status(s.node, s.id): s.to_json() for s in after.statuses}
            await self._store.commit({**gone, **told})

    async def fail(self, deployment: str, message: str) -> None:
        """The agents give up on every replica of a deployment that is not ready."""
        await self.scheduler.converge()
        fleet = await self.fleet()
        for placement in fleet.placements:
            seen = fleet.status_of(placement)
            is_ready = seen is not None and seen.phase is Phase.READY
            if placement.deployment == deployment and placement.intent is Intent.SERVE and not is_ready:
                failed = ReplicaStatus(
                    id=placement.id,
                    epoch=placement.epoch,
                    node=placement.node,
                    phase=Phase.FAILED,
                    message=message,
                    given_up=True,
                )
                await write(self._store, failed)
        await self.scheduler.converge()
