"""A member of the store's three fails, in every way: commits, watches and leases go on through another one."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Iterator

import pytest

from tests.etcd_cluster import EtcdCluster, etcd_cluster
from tests.faults.etcd_traffic import Traffic, traffic

pytestmark = pytest.mark.faults


@pytest.fixture
def three() -> Iterator[EtcdCluster]:
    with etcd_cluster(3) as cluster:
        yield cluster


async def gaps_until_it_goes_on(running: Traffic, began: float) -> tuple[float, float]:
    await running.goes_on(30)
    gaps = running.gaps_since(began)
    await running.check_nothing_is_lost()
    assert running.leases_lost == 0
    return gaps


async def test_row_30_the_leader_is_killed(three: EtcdCluster) -> None:
    leader = three.leader
    async with traffic(three, at=leader) as running:
        began = time.monotonic()
        leader.kill()
        assert max(await gaps_until_it_goes_on(running, began)) < 5
        leader.start()
        await asyncio.to_thread(leader.wait_healthy)
        assert max(await gaps_until_it_goes_on(running, time.monotonic())) < 5


async def test_row_31_the_member_in_use_is_cut_from_its_peers(three: EtcdCluster) -> None:
    """Its clients reach it as before, and it says nothing of its own accord."""
    member = next(member for member in three.members if not member.leads)
    async with traffic(three, at=member) as running:
        began = time.monotonic()
        with three.cut_from_peers(member):
            assert max(await gaps_until_it_goes_on(running, began)) < 6
            assert three.member_at(running.client.endpoint) is not member
        assert max(await gaps_until_it_goes_on(running, time.monotonic())) < 6


async def test_row_31_the_leader_in_use_is_cut_from_its_peers(three: EtcdCluster) -> None:
    leader = three.leader
    async with traffic(three, at=leader) as running:
        began = time.monotonic()
        with three.cut_from_peers(leader):
            assert max(await gaps_until_it_goes_on(running, began)) < 6
        assert max(await gaps_until_it_goes_on(running, time.monotonic())) < 6


@pytest.mark.parametrize("leads", [True, False])
async def test_row_32_the_member_in_use_is_stopped_half_way(three: EtcdCluster, leads: bool) -> None:
    member = next(member for member in three.members if member.leads == leads)
    async with traffic(three, at=member) as running:
        began = time.monotonic()
        member.pause()
        try:
            assert max(await gaps_until_it_goes_on(running, began)) < 10
        finally:
            member.resume()
        assert max(await gaps_until_it_goes_on(running, time.monotonic())) < 10


async def test_row_33_two_of_three_are_lost_and_come_back(three: EtcdCluster) -> None:
    """Nothing is written meanwhile, whoever holds a lease knows that it is lost, and the rest goes on by itself."""
    leader, lost = three.leader, [member for member in three.members if not member.leads]
    async with traffic(three, at=leader, lease_seconds=3) as running:
        for member in lost:
            member.kill()
        began = time.monotonic()
        async with asyncio.timeout(10):
            await running.lease.lost.wait()
        assert not [when for when, _ in running.written if when > began + 2]
        for member in lost:
            member.start()
        await asyncio.to_thread(three.wait_healthy)
        has_quorum = time.monotonic()
        async with asyncio.timeout(5), running.client.lease(3) as lease:
            running.lease = lease
            await running.goes_on(5)
            assert time.monotonic() - has_quorum < 5
            await running.check_nothing_is_lost()


@pytest.mark.parametrize("seconds", [0.2, 1.5])
async def test_row_34_a_leader_with_a_slow_disk_costs_no_lease(three: EtcdCluster, seconds: float) -> None:
    leader = three.leader
    async with traffic(three, at=leader) as running:
        with leader.slow_disk(seconds):
            await running.runs(15)  # longer than the lease
            assert running.leases_lost == 0
        await gaps_until_it_goes_on(running, time.monotonic())


@pytest.mark.parametrize("seconds", [0.2, 1.5])
async def test_row_34_a_follower_with_a_slow_disk_is_left_for_another(three: EtcdCluster, seconds: float) -> None:
    follower = next(member for member in three.members if not member.leads)
    async with traffic(three, at=follower) as running:
        with follower.slow_disk(seconds):
            async with asyncio.timeout(30):
                while three.member_at(running.client.endpoint) is follower:
                    await running.goes_on(30)
            await running.goes_on(30)
            count = len(running.took)
            await running.runs(12)
            assert three.member_at(running.client.endpoint) is not follower
            assert statistics.median(running.took[count:]) < seconds
            assert max(running.gaps_since(time.monotonic() - 8)) < 3  # the watch moved, too
        await gaps_until_it_goes_on(running, time.monotonic())
