"""What the store promises, on a real etcd."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from deepinfer.etcd.client import Client
from deepinfer.fleet.errors import LeaseLost, StoreConflict, StoreUnavailable
from deepinfer.fleet.store import EtcdStore, Reading
from tests.etcd_process import EtcdProcess, FaultProxy
from tests.fleet import free_port

ROOT = "/deepinfer/"


async def test_a_commit_is_read_back_at_its_revision(store: EtcdStore) -> None:
    revision = await store.commit({"/deepinfer/a": b"1", "/deepinfer/b": b"2"}, if_unchanged=await store.read(ROOT))
    reading = await store.read(ROOT)
    assert reading.values == {"/deepinfer/a": b"1", "/deepinfer/b": b"2"}
    assert reading.revision == revision == reading.mod_revision("/deepinfer/b")


async def test_a_key_changed_since_the_reading_is_a_conflict_and_nothing_is_written(store: EtcdStore) -> None:
    await store.commit({"/deepinfer/a": b"1"})
    reading = await store.read(ROOT)
    await store.commit({"/deepinfer/a": b"2"})
    with pytest.raises(StoreConflict, match="/deepinfer/a"):
        await store.commit({"/deepinfer/a": b"3", "/deepinfer/b": b"3"}, if_unchanged=reading)
    assert (await store.read(ROOT)).values == {"/deepinfer/a": b"2"}


async def test_a_key_absent_in_the_reading_must_still_be_absent(store: EtcdStore) -> None:
    reading = await store.read(ROOT)
    await store.commit({"/deepinfer/a": b"theirs"})
    with pytest.raises(StoreConflict):
        await store.commit({"/deepinfer/a": b"ours"}, if_unchanged=reading)


async def test_a_key_deleted_since_the_reading_is_a_conflict(store: EtcdStore) -> None:
    await store.commit({"/deepinfer/a": b"1"})
    reading = await store.read(ROOT)
    await store.commit({"/deepinfer/a": None})
    with pytest.raises(StoreConflict):
        await store.commit({"/deepinfer/a": b"2"}, if_unchanged=reading)


async def test_keys_that_the_commit_does_not_touch_may_change(store: EtcdStore) -> None:
    reading = await store.read(ROOT)
    await store.commit({"/deepinfer/other": b"x"})
    await store.commit({"/deepinfer/a": b"1"}, if_unchanged=reading)
    assert (await store.read(ROOT)).values["/deepinfer/a"] == b"1"


async def test_also_unchanged_guards_a_key_that_is_not_written(store: EtcdStore) -> None:
    revision = await store.commit({"/deepinfer/leader": b"me"})
    await store.commit({"/deepinfer/a": b"1"}, also_unchanged={"/deepinfer/leader": revision})
    await store.commit({"/deepinfer/leader": b"somebody else"})
    with pytest.raises(StoreConflict, match="leader"):
        await store.commit({"/deepinfer/a": b"2"}, also_unchanged={"/deepinfer/leader": revision})


async def test_a_reading_cannot_vouch_for_keys_outside_it(store: EtcdStore) -> None:
    reading = await store.read("/deepinfer/nodes/")
    with pytest.raises(ValueError, match="/deepinfer/a"):
        await store.commit({"/deepinfer/a": b"1"}, if_unchanged=reading)


async def test_many_keys_are_written_in_batches_and_read_in_pages_at_one_revision(store: EtcdStore) -> None:
    wanted: dict[str, bytes | None] = {f"/deepinfer/{i:05}": b"x" * 1024 for i in range(1250)}
    revision = await store.commit(wanted, if_unchanged=await store.read(ROOT))
    reading = await store.read(ROOT)
    assert reading.values == wanted
    assert reading.revision == revision
    assert len({entry.mod_revision for entry in reading.entries.values()}) == 13
    await store.commit(dict.fromkeys(wanted), if_unchanged=reading)
    assert (await store.read(ROOT)).entries == {}


async def test_pages_are_of_one_revision_although_others_write_meanwhile(etcd: str, store: EtcdStore) -> None:
    await store.commit({f"/deepinfer/{i:03}": b"old" for i in range(200)})
    async with Client([etcd]) as client, asyncio.TaskGroup() as tasks:
        reading = tasks.create_task(client.read_prefixes(b"/deepinfer/", page=1))
        tasks.create_task(store.commit({f"/deepinfer/{i:03}": b"new" for i in range(200, 99, -1)}))
    found, revision = reading.result()
    assert len(found) >= 200
    assert all(kv.mod_revision <= revision for kv in found)


async def test_several_prefixes_are_read_by_one_request_at_one_revision(own_etcd: EtcdProcess) -> None:
    async with EtcdStore.connect([own_etcd.endpoint]) as store:
        await store.commit({"/deepinfer/a/1": b"1", "/deepinfer/b/1": b"2", "/deepinfer/c/1": b"3"})
        before = own_etcd.received()
        reading = await store.read("/deepinfer/a/", "/deepinfer/c/", "/deepinfer/nothing/")
        assert own_etcd.received() - before == {"Txn": 1}
        assert reading.values == {"/deepinfer/a/1": b"1", "/deepinfer/c/1": b"3"}
        await store.commit({"/deepinfer/c/1": None}, if_unchanged=reading)
        with pytest.raises(ValueError, match="/deepinfer/b/1"):
            reading.mod_revision("/deepinfer/b/1")


async def test_several_prefixes_are_read_in_pages_of_one_revision(etcd: str, store: EtcdStore) -> None:
    wanted = {f"/deepinfer/{part}/{i:02}": b"old" for part in "ab" for i in range(20)}
    await store.commit(wanted)
    async with Client([etcd]) as client, asyncio.TaskGroup() as tasks:
        reading = tasks.create_task(client.read_prefixes(b"/deepinfer/a/", b"/deepinfer/b/", page=1))
        tasks.create_task(store.commit({f"/deepinfer/b/{i:02}": b"new" for i in range(40)}))
    found, revision = reading.result()
    assert len(found) in (40, 60)
    assert len({kv.key for kv in found}) == len(found)
    assert all(kv.mod_revision <= revision for kv in found)


async def test_large_values_are_split_below_etcds_request_limit(store: EtcdStore) -> None:
    wanted: dict[str, bytes | None] = {f"/deepinfer/{i}": b"x" * 300_000 for i in range(8)}
    await store.commit(wanted)
    assert (await store.read(ROOT)).values == wanted


async def test_what_is_written_under_a_lease_ends_with_its_block(store: EtcdStore) -> None:
    async with store.lease(5) as lease:
        await store.commit({"/deepinfer/a": b"1"}, lease=lease)
        assert (await store.read(ROOT)).values == {"/deepinfer/a": b"1"}
    assert (await store.read(ROOT)).entries == {}
    with pytest.raises(LeaseLost):
        await store.commit({"/deepinfer/a": b"2"}, lease=lease)


async def test_nobody_at_the_endpoint_is_named_with_the_next_step() -> None:
    endpoint = f"127.0.0.1:{free_port()}"
    with pytest.raises(StoreUnavailable, match=f"{endpoint}.*start-etcd.sh"):
        async with EtcdStore.connect([endpoint], timeout=0.3):
            pass


async def test_a_commit_whose_answer_was_lost_is_found_applied(etcd: str, store: EtcdStore) -> None:
    proxy = FaultProxy(etcd)
    async with proxy.running(), EtcdStore.connect([proxy.endpoint]) as ours, asyncio.TaskGroup() as tasks:
        reading = await ours.read(ROOT)
        async with aclosing(store.changes(ROOT)) as revisions:
            await anext(revisions)
            proxy.swallow_answers()
            committing = tasks.create_task(ours.commit({"/deepinfer/a": b"ours"}, if_unchanged=reading))
            applied_at = await anext(revisions)
        proxy.cut()
        proxy.heal()
        assert await committing == applied_at


async def test_a_commit_that_never_arrived_is_not_claimed_to_be_applied_or_refused(etcd: str, store: EtcdStore) -> None:
    proxy = FaultProxy(etcd)
    async with proxy.running(), EtcdStore.connect([proxy.endpoint], timeout=1) as ours:
        reading = await ours.read(ROOT)
        proxy.block()
        with pytest.raises(StoreUnavailable):
            await ours.commit({"/deepinfer/a": b"ours"}, if_unchanged=reading)
        assert (await store.read(ROOT)).entries == {}


async def test_a_single_writer_is_never_told_that_it_lost(etcd: str, store: EtcdStore) -> None:
    """Its connection is reset again and again under its commits; each outcome it is told must be the truth."""
    proxy = FaultProxy(etcd)
    key = "/deepinfer/counter"
    told = 0
    async with proxy.running(), EtcdStore.connect([proxy.endpoint]) as ours, asyncio.TaskGroup() as tasks:
        for attempt in range(40):
            reading = await store.read(key)
            committing = tasks.create_task(_outcome(ours, {key: b"%d" % attempt}, reading))
            for _ in range(attempt % 7):
                await asyncio.sleep(0)
            proxy.cut()
            if await committing:
                told += 1
                assert (await store.read(key)).values[key] == b"%d" % attempt
    assert told


async def _outcome(store: EtcdStore, puts: dict[str, bytes | None], reading: Reading) -> bool:
    """A conflict is not caught: there is no other writer, so it would be a lie."""
    try:
        await store.commit(puts, if_unchanged=reading)
    except StoreUnavailable:
        return False
    return True
