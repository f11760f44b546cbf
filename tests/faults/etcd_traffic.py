"""What a fleet does with its store all day, timed: small commits, a watch, a lease."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager, suppress

from deepinfer.etcd.access import OPEN, Access
from deepinfer.etcd.client import Client
from deepinfer.etcd.lease import Lease
from deepinfer.fleet.errors import StoreUnavailable
from deepinfer.fleet.store import EtcdStore
from tests.etcd_cluster import EtcdCluster, Member

PREFIX = "/deepinfer/traffic/"
PAUSE_SECONDS = 0.05
LEASE_SECONDS = 10


class Traffic:
    """Runs inside `traffic`. Times are of `time.monotonic`."""

    def __init__(self, client: Client, store: EtcdStore, lease: Lease) -> None:
        self.client, self.store, self.lease = client, store, lease
        self.written: list[tuple[float, int]] = []  # when it was acknowledged, and at which revision
        self.seen: list[tuple[float, int]] = []
        self.took: list[float] = []  # each commit that was acknowledged
        self.leases_lost = 0
        self.news = asyncio.Event()
        self._may_write = asyncio.Event()
        self._may_write.set()

    def pause_writing(self) -> None:
        self._may_write.clear()

    def resume_writing(self) -> None:
        self._may_write.set()

    async def write(self) -> None:
        for number in itertools.count():
            await self._may_write.wait()
            began = time.monotonic()
            with suppress(StoreUnavailable):
                revision = await self.store.commit({f"{PREFIX}{number}": b"x"}, lease=self.lease)
                self.written.append((time.monotonic(), revision))
                self.took.append(time.monotonic() - began)
            await asyncio.sleep(PAUSE_SECONDS)  # the load wanted

    async def watch(self, ready: asyncio.Event) -> None:
        async with aclosing(self.client.watch(PREFIX.encode())) as batches:
            async for batch in batches:
                ready.set()
                self.seen += [(time.monotonic(), change.mod_revision) for change in batch.changes]
                self.news.set()

    async def mind_lease(self) -> None:
        await self.lease.lost.wait()
        self.leases_lost += 1

    async def goes_on(self, seconds: float) -> None:
        """Until writes begun from now on are acknowledged and seen."""
        since = time.monotonic()
        async with asyncio.timeout(seconds):
            while not self._written_and_seen_since(since):
                self.news.clear()
                await self.news.wait()

    async def runs(self, seconds: float) -> None:
        await asyncio.sleep(seconds)  # the length of a fault, or of a measurement

    def gaps_since(self, began: float) -> tuple[float, float]:
        """The longest times without an acknowledged write and without a change seen."""
        return _longest_gap(self.written, began), _longest_gap(self.seen, began)

    def _written_and_seen_since(self, since: float) -> bool:
        revisions = {revision for _, revision in self.seen}
        return sum(when > since and revision in revisions for when, revision in self.written) >= 3

    async def check_nothing_is_lost(self) -> None:
        """Every change was seen once, in order, as etcd itself tells the history."""
        seen = [revision for _, revision in self.seen]
        history: list[int] = []
        async with aclosing(self.client.watch(PREFIX.encode(), start=seen[0])) as batches:
            async for batch in batches:
                history += [change.mod_revision for change in batch.changes]
                if batch.revision >= seen[-1]:
                    break
        assert seen == history[: len(seen)]
        assert {revision for _, revision in self.written if revision <= seen[-1]} <= set(seen)


@asynccontextmanager
async def traffic(
    cluster: EtcdCluster, at: Member | None = None, *, access: Access = OPEN, lease_seconds: int = LEASE_SECONDS
) -> AsyncIterator[Traffic]:
    """Under way through one client, which begins with the member `at`."""
    endpoints = cluster.endpoints
    client = Client(endpoints, access=access)
    while at is not None and cluster.member_at(client.endpoint) is not at:
        await client.close()
        client = Client(endpoints, access=access)
    async with client, client.lease(lease_seconds) as lease:
        running = Traffic(client, EtcdStore(client, endpoints), lease)
        watching = asyncio.Event()
        tasks = [asyncio.create_task(running.watch(watching)), asyncio.create_task(running.mind_lease())]
        try:
            await watching.wait()
            tasks.append(asyncio.create_task(running.write()))
            await running.goes_on(10)
            yield running
            for task in tasks:
                assert not task.done() or not task.exception()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def _longest_gap(events: Sequence[tuple[float, int]], began: float) -> float:
    times = [began, *(when for when, _ in events if when > began), time.monotonic()]
    return max(later - earlier for earlier, later in itertools.pairwise(times))
