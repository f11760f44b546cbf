"""Row 50: everybody comes back to a restarted etcd at once."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

import psutil
import pytest

from deepinfer.fleet.store import EtcdStore, Lease
from tests.etcd_process import EtcdProcess
from tests.faults import etcd_reading
from tests.fleet import eventually

CLIENTS = 300
LEASE_SECONDS = 10
AWAY_SECONDS = 3
BACK_SECONDS = 5
NEWS, HELD = "/deepinfer/herd/news/", "/deepinfer/herd/held/"


class Herd:
    """Clients as agents are: each has a connection, a lease with a key under it, and a watch of its own."""

    def __init__(self) -> None:
        self.leases: list[Lease] = []
        self.seen: list[list[str]] = [[] for _ in range(CLIENTS)]
        self._told: Counter[str] = Counter()
        self._moved = asyncio.Event()

    async def run(self, endpoint: str, number: int) -> None:
        """Never returns."""
        async with EtcdStore.connect([endpoint], timeout=30) as store, store.lease(LEASE_SECONDS) as lease:
            await store.commit({f"{HELD}{number}": b"x"}, lease=lease)
            self.leases.append(lease)
            async with aclosing(store.watch(NEWS, 0, lambda _: None)) as batches:
                async for changes in batches:
                    told = [key.removeprefix(NEWS) for key in changes.entries]
                    self.seen[number] += told
                    self._told.update(told or ["nothing yet"])
                    self._moved.set()

    async def all_saw(self, news: str, seconds: float) -> None:
        async with asyncio.timeout(seconds):
            while self._told[news] < CLIENTS:
                self._moved.clear()
                await self._moved.wait()


@asynccontextmanager
async def herd_at(endpoint: str) -> AsyncIterator[Herd]:
    herd = Herd()
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(herd.run(endpoint, number)) for number in range(CLIENTS)]
        await herd.all_saw("nothing yet", 60)
        yield herd
        for task in running:
            task.cancel()


async def tell(endpoint: str, news: str) -> None:
    async with EtcdStore.connect([endpoint]) as store:
        await store.commit({f"{NEWS}{news}": b"x"})


@pytest.mark.faults
async def test_row_50_three_hundred_clients_come_back_at_once(own_etcd: EtcdProcess) -> None:
    async with herd_at(own_etcd.endpoint) as herd:
        await tell(own_etcd.endpoint, "first")
        await herd.all_saw("first", 10)
        await tell(own_etcd.endpoint, "last words")
        own_etcd.kill()
        await asyncio.sleep(AWAY_SECONDS)  # the fault's length
        await asyncio.to_thread(own_etcd.start)
        healthy = time.monotonic()
        before = psutil.Process(own_etcd.pid).cpu_times()
        await tell(own_etcd.endpoint, "after")
        await herd.all_saw("after", BACK_SECONDS)
        took, after = time.monotonic() - healthy, psutil.Process(own_etcd.pid).cpu_times()
        spent = after.user + after.system - before.user - before.system
        print(f"all {CLIENTS} are back {took:.1f} s after etcd was; it used {spent / took:.2f} of a core meanwhile")
        assert spent < took, "more than a core"
        await asyncio.sleep(healthy + LEASE_SECONDS + 1 - time.monotonic())  # what nobody renews has ended by then
        assert not [lease for lease in herd.leases if lease.lost.is_set()]
        assert len(etcd_reading.values(own_etcd.endpoint, HELD)) == CLIENTS
        assert herd.seen == [["first", "last words", "after"]] * CLIENTS
    eventually(lambda: etcd_reading.leases(own_etcd.endpoint) == 0, 5)
    eventually(lambda: own_etcd.metric("etcd_debugging_mvcc_watcher_total") == 0, 5)
