"""etcd's database reaches its quota: what runs stays, nobody storms, and all goes on once there is room."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from deepinfer.etcd.client import Client
from deepinfer.fleet.convergence import keep_converging
from deepinfer.fleet.errors import StoreFull
from deepinfer.fleet.leadership import Leadership, lead
from deepinfer.fleet.store import EtcdStore
from tests.etcd_cluster import EtcdCluster, etcd_cluster
from tests.fleet import Fleet, eventually

pytestmark = pytest.mark.faults

FULL_SECONDS = 22.0
LEASE_SECONDS = 5


@pytest.fixture
def small() -> Iterator[EtcdCluster]:
    with etcd_cluster(1, f"--quota-backend-bytes={8 << 20}") as cluster:
        yield cluster


async def fill(store: EtcdStore) -> None:
    with suppress(StoreFull):
        for _ in range(100):
            await store.commit({"/deepinfer/large": b"x" * 900_000})
        raise AssertionError("it never got full")


async def filled(cluster: EtcdCluster) -> None:
    async with EtcdStore.connect(cluster.endpoints) as store:
        await fill(store)


async def make_room(cluster: EtcdCluster) -> None:
    async with Client(cluster.endpoints) as client:
        await client.compact((await EtcdStore(client, cluster.endpoints).read("/deepinfer/")).revision)
    cluster.etcdctl("defrag")
    cluster.etcdctl("alarm", "disarm")


class Loops:
    """A leader and a node, as `serve` and `worker` run them: each pass writes."""

    def __init__(self, store: EtcdStore) -> None:
        self.passes = 0
        self.passed = asyncio.Event()
        self._store = store

    async def converge(self) -> None:
        await self._store.commit({"/deepinfer/status": str(self.passes).encode()})
        self.passes += 1
        self.passed.set()

    async def led(self, _: Leadership) -> None:
        await asyncio.Event().wait()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(keep_converging(self.converge, asyncio.Event()))
            tasks.create_task(lead(self._store, "late", self.led))


async def test_row_36_a_full_database_stops_growth_and_nothing_else(small: EtcdCluster) -> None:
    member = small.members[0]
    async with Client(small.endpoints) as client:
        store = EtcdStore(client, small.endpoints)
        async with store.lease(LEASE_SECONDS) as lease:
            await store.commit({"/deepinfer/nodes/a": b"a"}, lease=lease)
            await fill(store)
            loops = Loops(store)
            running = asyncio.create_task(loops.run())
            before = member.metric("grpc_server_handled_total")
            await asyncio.sleep(FULL_SECONDS)  # longer than the lease, and than early pauses between attempts
            assert member.metric("grpc_server_handled_total") - before < 10 * FULL_SECONDS
            assert loops.passes == 0 and not lease.lost.is_set()
            with pytest.raises(StoreFull, match="etcdctl alarm disarm"):
                await store.commit({"/deepinfer/more": b"x"})

            await make_room(small)
            has_room = time.monotonic()
            async with asyncio.timeout(10):
                await loops.passed.wait()
            assert time.monotonic() - has_room < 5
            assert "/deepinfer/nodes/a" in (await store.read("/deepinfer/")).entries
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


def test_row_36_a_person_is_told_that_it_is_full_and_the_next_step(small: EtcdCluster, tmp_path: Path) -> None:
    with Fleet(tmp_path, etcd=small.endpoints).running() as fleet:
        assert "Store:      sound\n" in fleet.command("fleet", "status").stdout
        asyncio.run(filled(small))
        told = fleet.command("fleet", "status").stdout
        assert "Store:      etcd's database is full; " in told and "`etcdctl alarm disarm`" in told
        refused = fleet.http.post("/v1/deployments", json={"name": "chat", "model": "m", "engine": "sim"})
        assert (refused.status_code, refused.json()["error"]["message"]) == (503, fleet.get("/v1/fleet")["alarm"])
        asyncio.run(make_room(small))
        eventually(lambda: not fleet.get("/v1/fleet")["alarm"], 5)
        assert fleet.deploy(name="chat", model="m", engine="sim", device="cpu")
        fleet.wait_ready("chat")
