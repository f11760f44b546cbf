"""The mirror over a real etcd: it equals a fresh reading whatever happens, and says when it cannot know."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from deepinfer.control_plane.management.moves import asked_for
from deepinfer.etcd.client import Client, Transaction
from deepinfer.fleet import keys
from deepinfer.fleet.convergence import keep_converging
from deepinfer.fleet.errors import AnotherFleet, StoreConflict, StoreUnavailable
from deepinfer.fleet.identity import FleetIdentity, confirmed, founded
from deepinfer.fleet.mirror import Mirror
from deepinfer.fleet.reading import Changes
from deepinfer.fleet.resources import Move
from deepinfer.fleet.snapshot import snapshot_of
from deepinfer.fleet.store import EtcdStore
from tests.etcd_process import EtcdProcess, FaultProxy
from tests.fleet_values import deployment, placement, status
from tests.mirrors import until

CHAT = keys.deployment("chat")


@asynccontextmanager
async def proxied(proxy: FaultProxy) -> AsyncIterator[Mirror]:
    async with (
        proxy.running(),
        EtcdStore.connect([proxy.endpoint]) as store,
        Mirror.following(store) as mirror,
    ):
        yield mirror


async def equals_a_fresh_reading(mirror: Mirror, store: EtcdStore) -> None:
    fresh = await store.read(keys.FLEET)
    await mirror.reaches(max(entry.mod_revision for entry in fresh.entries.values()), 10)
    assert mirror.reading.entries == fresh.entries
    assert mirror.fleet == snapshot_of(fresh.values)


async def test_it_is_listed_then_follows_every_change(store: EtcdStore) -> None:
    await store.commit({CHAT: deployment().to_json(), keys.deployment("damaged"): b"{"})
    async with Mirror.following(store) as mirror:
        assert [d.name for d in (await mirror.latest()).deployments] == ["chat"]
        assert list(mirror.fleet.unreadable) == [keys.deployment("damaged")]
        await store.commit({CHAT: None, keys.status("node-1", placement().id): status().to_json()})
        fleet = await mirror.latest()
        assert (fleet.deployments, fleet.statuses) == ((), (status(),))
        assert mirror.stale_since is None
        await equals_a_fresh_reading(mirror, store)


async def test_a_write_of_this_process_is_in_the_next_view(store: EtcdStore) -> None:
    async with Mirror.following(store) as mirror:
        for replicas in range(50):
            view = await mirror.view()
            await mirror.commit({CHAT: deployment(replicas=replicas).to_json()}, if_unchanged=view.reading)
            assert (await mirror.view()).fleet.deployments[0].spec.replicas == replicas


async def test_a_key_that_is_no_text_is_in_nobodys_way(etcd: str, store: EtcdStore) -> None:
    async with Client([etcd]) as client, Mirror.following(store) as mirror:
        await mirror.latest()
        await client.transact(Transaction(unchanged=[], puts=[(b"/deepinfer/nodes/\xff", b"{}")]))
        await store.commit({CHAT: deployment().to_json()})
        assert list((await mirror.latest()).unreadable) == [keys.node(r"\xff")]
        await equals_a_fresh_reading(mirror, store)
        await client.transact(Transaction(unchanged=[], deletes=[b"/deepinfer/nodes/\xff"]))
        await until(mirror, lambda: not mirror.fleet.unreadable)


async def test_a_deletion_of_nothing_is_not_waited_for(store: EtcdStore) -> None:
    """It has the revision of somebody else's write, such as an event's, and nothing of it comes back."""
    async with Mirror.following(store) as mirror:
        await mirror.latest()
        await store.commit({keys.event("fleet", "1"): b"{}"})
        nothing = keys.node_settings("gone")
        await mirror.commit({nothing: None}, if_unchanged=await mirror.read(nothing))
        await mirror.view()


async def test_a_write_before_the_first_listing_waits_for_it_and_is_no_conflict(store: EtcdStore) -> None:
    await founded(store)
    async with Mirror.following(store) as mirror:
        await mirror.commit({CHAT: deployment().to_json()})
    with pytest.raises(StoreUnavailable):
        await Mirror(store).commit({CHAT: None})


async def test_a_view_does_not_vouch_for_what_came_after_it(store: EtcdStore) -> None:
    async with Mirror.following(store) as mirror:
        view = await mirror.view()
        await store.commit({CHAT: deployment().to_json()})
        await mirror.latest()
        with pytest.raises(StoreConflict, match=CHAT):
            await mirror.commit({CHAT: deployment(replicas=2).to_json()}, if_unchanged=view.reading)


async def test_changes_cuts_and_compactions_in_any_order_leave_it_equal(etcd: str, store: EtcdStore) -> None:
    chance = random.Random(7)
    proxy = FaultProxy(etcd)
    async with Client([etcd]) as client, proxied(proxy) as mirror:
        for step in range(150):
            key = keys.deployment(f"d{chance.randrange(8)}")
            gone = chance.random() < 0.3
            revision = await store.commit({key: None if gone else deployment(replicas=step).to_json()})
            if chance.random() < 0.1:
                await client.compact(revision)
            if chance.random() < 0.1:
                proxy.cut()
        await store.commit({keys.deployment("last"): deployment("last").to_json()})
        await equals_a_fresh_reading(mirror, store)


async def test_what_was_deleted_and_compacted_during_a_break_is_gone(etcd: str, store: EtcdStore) -> None:
    await store.commit({CHAT: deployment().to_json()})
    proxy = FaultProxy(etcd)
    async with Client([etcd]) as client, proxied(proxy) as mirror:
        await mirror.latest()
        proxy.block()
        proxy.cut()
        await until(mirror, lambda: mirror.stale_since)
        await store.commit({CHAT: None})
        await client.compact(await store.commit({keys.LEADER: b"x"}))
        assert [d.name for d in (await mirror.latest()).deployments] == ["chat"]
        proxy.heal()
        proxy.cut()
        await until(mirror, lambda: mirror.stale_since is None)
        assert mirror.fleet.deployments == ()


async def test_while_the_store_is_away_it_is_stale_and_no_decision_may_rest_on_it(own_etcd: EtcdProcess) -> None:
    async with EtcdStore.connect([own_etcd.endpoint], timeout=1) as store, Mirror.following(store) as mirror:
        await store.commit({CHAT: deployment().to_json()})
        await mirror.latest()
        own_etcd.kill()
        await until(mirror, lambda: mirror.stale_since)
        assert [d.name for d in (await mirror.latest()).deployments] == ["chat"]
        with pytest.raises(StoreUnavailable):
            await mirror.commit({CHAT: None})
        await asyncio.to_thread(own_etcd.start)
        await until(mirror, lambda: mirror.stale_since is None)
        await mirror.commit({CHAT: None}, if_unchanged=mirror.reading)
        assert (await mirror.view()).fleet.deployments == ()


async def test_a_burst_of_changes_costs_a_few_passes_and_the_last_one_sees_it_all(store: EtcdStore) -> None:
    passes, saw_all = 0, asyncio.Event()
    async with Mirror.following(store) as mirror, asyncio.TaskGroup() as tasks:

        async def look() -> None:
            nonlocal passes
            passes += 1
            if len((await mirror.latest()).deployments) == 300:
                saw_all.set()

        news = mirror.listener()
        loop = tasks.create_task(keep_converging(look, news, rest_seconds=0.1))
        for n in range(300):
            await store.commit({keys.deployment(f"d{n:03}"): deployment(f"d{n:03}").to_json()})
        async with asyncio.timeout(10):
            await saw_all.wait()
        loop.cancel()
    assert passes < 100


async def test_what_the_watch_got_wrong_is_right_again_after_a_resync(
    store: EtcdStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deepinfer.fleet.mirror.RESYNC_SECONDS", 0.2)
    await store.commit({CHAT: deployment().to_json()})
    async with Mirror.following(store) as mirror:
        await mirror.latest()
        mirror._shown.apply(Changes({CHAT: None}, mirror.revision + 1))  # a lost change: there is no honest way
        await until(mirror, lambda: len(mirror.fleet.deployments) == 1)
        assert not mirror.stale_since


async def test_a_view_older_than_this_process_own_writes_is_refused(etcd: str, store: EtcdStore) -> None:
    async with Mirror.following(store) as mirror:
        await mirror.latest()
        with pytest.raises(StoreUnavailable, match="older than"):
            await mirror.reaches(mirror.revision + 1, 0.05)


async def test_a_move_that_another_control_plane_has_just_asked_for_stays(
    etcd: str, store: EtcdStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, ours = placement(), placement(replica=1)
    async with Mirror.following(store) as mirror:
        await store.commit({keys.placement(p.node, p.id): p.to_json() for p in (theirs, ours)})
        await mirror.latest()
        late: list[Changes] = []
        apply = mirror._apply
        monkeypatch.setattr(mirror, "_apply", late.append)  # the news is on its way

        def arrive() -> None:
            monkeypatch.undo()
            for each in late:
                apply(each)

        asyncio.get_running_loop().call_later(0.3, arrive)
        async with EtcdStore.connect([etcd]) as other:
            await other.commit({keys.move(theirs.id): Move(placement=theirs.id, epoch=theirs.epoch).to_json()})
        await asked_for(mirror, [Move(placement=ours.id, epoch=ours.epoch)])
        assert sorted((await store.read(keys.MOVES)).entries) == [keys.move(theirs.id), keys.move(ours.id)]


async def test_an_unexplained_conflict_has_everything_listed_anew(store: EtcdStore) -> None:
    """As after a restored backup whose revision had overtaken ours before we looked."""
    await store.commit({CHAT: deployment().to_json()})
    async with Mirror.following(store) as mirror:
        await mirror.latest()
        mirror._shown.apply(Changes({CHAT: None}, mirror.revision + 1))  # there is no honest way
        for _ in range(2):
            with pytest.raises(StoreConflict):
                await mirror.commit({CHAT: None}, if_unchanged=mirror.reading)
        await until(mirror, lambda: len(mirror.fleet.deployments) == 1)
        await mirror.commit({CHAT: None}, if_unchanged=mirror.reading)


async def test_a_store_wiped_by_hand_is_doubted_until_a_person_confirms_it(store: EtcdStore) -> None:
    first = await founded(store)
    assert await founded(store) == first
    await store.commit({CHAT: deployment().to_json()})
    async with Mirror.following(store) as mirror:
        before = await mirror.latest()
        everything = await store.read(keys.FLEET)
        await store.commit(dict.fromkeys(everything.entries))
        await until(mirror, lambda: mirror.doubt)
        assert first.id in mirror.doubt and "deepinfer fleet confirm" in mirror.doubt
        assert (await mirror.latest()) is before and mirror.stale_since
        for attempt in (mirror.view(), mirror.read(CHAT), mirror.commit({CHAT: None})):
            with pytest.raises(AnotherFleet, match="fleet confirm"):
                await attempt
        second = await founded(store)
        await until(mirror, lambda: second.id in mirror.doubt)
        assert (await confirmed(store, [mirror.known])).succeeds == (first.id,)
        await until(mirror, lambda: not mirror.doubt)
        assert (mirror.fleet.deployments, mirror.known) == ((), second.id)
        assert not mirror.stale_since


async def test_a_write_never_reaches_a_store_that_was_wiped_unnoticed(store: EtcdStore) -> None:
    await founded(store)
    async with Mirror.following(store) as mirror:
        reading = (await mirror.view()).reading
        await store.commit({keys.IDENTITY: None})
        with pytest.raises((StoreConflict, AnotherFleet)):  # whether it has heard of it by now or not
            await mirror.commit({CHAT: deployment().to_json()}, if_unchanged=reading)
        assert CHAT not in (await store.read(keys.FLEET)).entries


async def test_a_store_of_a_newer_schema_is_doubted(store: EtcdStore) -> None:
    first = await founded(store)
    async with Mirror.following(store) as mirror:
        await mirror.latest()
        newer = FleetIdentity(id=first.id, schema=2)
        await store.commit({keys.IDENTITY: newer.to_json()})
        await until(mirror, lambda: "schema 2" in mirror.doubt)
