"""A lease knows that it is lost no later than etcd does."""

from __future__ import annotations

import asyncio
from contextlib import aclosing, suppress

import pytest

from deepinfer.etcd.client import Client, Transaction
from deepinfer.etcd.errors import LeaseGone
from tests.etcd_process import EtcdProcess, FaultProxy


async def test_a_lease_revoked_at_the_server_is_lost(etcd: str) -> None:
    async with Client([etcd]) as client, client.lease(3) as lease:
        await client.revoke(lease.id)
        async with asyncio.timeout(3):
            await lease.lost.wait()
        with pytest.raises(LeaseGone):
            await client.transact(Transaction([], puts=[(b"/a", b"")], lease=lease.id))


async def test_behind_a_partition_a_lease_is_lost_here_before_its_keys_go_there(etcd: str) -> None:
    proxy = FaultProxy(etcd)
    async with (
        Client([etcd]) as direct,
        proxy.running(),
        Client([proxy.endpoint], timeout=0.5) as client,
        aclosing(direct.watch(b"/leased/")) as batches,
        client.lease(2) as lease,
    ):
        await anext(batches)
        await client.transact(Transaction([], puts=[(b"/leased/a", b"1")], lease=lease.id))
        proxy.block()
        async for batch in batches:
            if batch.changes[-1].value is None:
                break
        assert lease.seconds_left == 0
        async with asyncio.timeout(5):
            await lease.lost.wait()


async def test_a_lease_outlives_resets_of_its_connection(etcd: str) -> None:
    proxy = FaultProxy(etcd)
    async with proxy.running(), Client([proxy.endpoint]) as client, client.lease(2) as lease:
        for _ in range(6):
            proxy.cut()
            with suppress(TimeoutError):
                await asyncio.wait_for(lease.lost.wait(), 0.5)
        assert not lease.lost.is_set()


async def test_a_lease_outlives_a_restart_of_etcd(own_etcd: EtcdProcess) -> None:
    async with Client([own_etcd.endpoint]) as client, client.lease(4) as lease:
        await client.transact(Transaction([], puts=[(b"/leased/a", b"1")], lease=lease.id))
        own_etcd.kill()
        await asyncio.to_thread(own_etcd.start)
        deadline_before = lease.seconds_left
        while lease.seconds_left <= deadline_before:  # until a renewal is acknowledged
            assert not lease.lost.is_set()
            deadline_before = min(deadline_before, lease.seconds_left)
            await asyncio.sleep(0.05)
        assert await client.get(b"/leased/a")
