"""One leader at a time; a deposed one stops, and cannot write even while it does not know."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import pytest

from deepinfer.fleet import keys
from deepinfer.fleet.errors import StoreConflict, StoreRefused
from deepinfer.fleet.leadership import Leadership, lead
from deepinfer.fleet.store import EtcdStore
from tests.etcd_process import EtcdProcess, FaultProxy


class Candidate:
    """Its work is to wait; it shows when it leads."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.leads: asyncio.Queue[Leadership] = asyncio.Queue()
        self.stopped = asyncio.Event()

    async def work(self, leadership: Leadership) -> None:
        self.stopped.clear()
        self.leads.put_nowait(leadership)
        try:
            await asyncio.Event().wait()
        finally:
            self.stopped.set()

    @asynccontextmanager
    async def campaigning(self, store: EtcdStore) -> AsyncIterator[None]:
        task = asyncio.create_task(lead(store, self.name, self.work, ttl_seconds=2))
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


async def test_a_leader_that_stops_hands_over_at_once(store: EtcdStore) -> None:
    first, second = Candidate("first"), Candidate("second")
    async with AsyncExitStack() as following:
        async with first.campaigning(store):
            await first.leads.get()
            await following.enter_async_context(second.campaigning(store))
            assert b'"first"' in (await store.read(keys.LEADER)).values[keys.LEADER]
            assert second.leads.empty()
        await asyncio.wait_for(second.leads.get(), 10)
    assert keys.LEADER not in (await store.read(keys.LEADER)).entries


async def test_a_leader_whose_key_is_deleted_by_hand_stops_and_campaigns_again(store: EtcdStore) -> None:
    candidate = Candidate("only")
    async with candidate.campaigning(store):
        first = await candidate.leads.get()
        await store.commit({keys.LEADER: None})
        second = await asyncio.wait_for(candidate.leads.get(), 10)
        with pytest.raises(StoreConflict):
            await store.commit({"/deepinfer/placements/x": b"old"}, also_unchanged=first.fence)
        await store.commit({"/deepinfer/placements/x": b"new"}, also_unchanged=second.fence)


async def test_an_etcd_that_refuses_every_write_is_waited_for(own_etcd: EtcdProcess) -> None:
    """As one that found its data damaged: it answers, and a person must look after it. Requests go on meanwhile."""
    candidate = Candidate("only")
    own_etcd.alarm_corrupt(on=True)
    async with EtcdStore.connect([own_etcd.endpoint]) as store, candidate.campaigning(store):
        with pytest.raises(StoreRefused, match="corrupt cluster"):
            async with store.lease(2):
                pass
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(candidate.leads.get(), 1)
        own_etcd.alarm_corrupt(on=False)
        await asyncio.wait_for(candidate.leads.get(), 10)


async def test_a_leader_behind_a_partition_stops_by_its_own_clock_and_its_writes_are_refused(
    etcd: str, store: EtcdStore
) -> None:
    proxy = FaultProxy(etcd)
    cut_off, heir = Candidate("cut-off"), Candidate("heir")
    async with (
        proxy.running(),
        EtcdStore.connect([proxy.endpoint], timeout=0.5) as theirs,
        cut_off.campaigning(theirs),
        AsyncExitStack() as following,
    ):
        old = await cut_off.leads.get()
        await following.enter_async_context(heir.campaigning(store))
        proxy.block()
        new = await asyncio.wait_for(heir.leads.get(), 10)
        await asyncio.wait_for(cut_off.stopped.wait(), 10)
        with pytest.raises(StoreConflict, match=keys.LEADER):  # a write of its own that arrives late
            await store.commit({"/deepinfer/placements/x": b"old"}, also_unchanged=old.fence)
        await store.commit({"/deepinfer/placements/x": b"new"}, also_unchanged=new.fence)


async def test_lead_ends_with_its_work_and_passes_its_error_on(store: EtcdStore) -> None:
    async def done_at_once(_: Leadership) -> None:
        return None

    async def broken(_: Leadership) -> None:
        raise ZeroDivisionError

    await asyncio.wait_for(lead(store, "brief", done_at_once), 10)
    with pytest.raises(ZeroDivisionError):
        await asyncio.wait_for(lead(store, "broken", broken), 10)
    assert keys.LEADER not in (await store.read(keys.LEADER)).entries
