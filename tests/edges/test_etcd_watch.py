"""A watch misses nothing and repeats nothing, whatever happens to etcd or to the network; or it says so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from pathlib import Path

import pytest

from deepinfer.etcd import watch as watch_module
from deepinfer.etcd.client import Client, Transaction
from deepinfer.etcd.errors import Compacted, EtcdError, HistoryReplaced
from deepinfer.etcd.messages import Change
from deepinfer.etcd.watch import Batch
from deepinfer.fleet.store import EtcdStore
from tests.etcd_process import EtcdProcess, FaultProxy

PREFIX = b"/watched/"


async def write(client: Client, first: int, count: int, size: int = 8) -> None:
    """`count` keys, each at a revision of its own."""
    for start in range(first, first + count, 100):
        numbers = range(start, min(start + 100, first + count))
        await asyncio.gather(*(put(client, PREFIX + b"%06d" % n, b"x" * size) for n in numbers))


async def put(client: Client, key: bytes, value: bytes) -> int:
    return (await client.transact(Transaction([], puts=[(key, value)]))).revision


async def revisions_seen(batches: AsyncGenerator[Batch, None], last: int) -> list[int]:
    """Of every change up to the revision `last`."""
    seen: list[int] = []
    async with aclosing(batches):
        async for batch in batches:
            seen += [change.mod_revision for change in batch.changes]
            if batch.revision >= last:
                break
    return seen


async def write_through_failures(client: Client, count: int, half_way: asyncio.Event) -> None:
    for n in range(count):
        if n == count // 2:
            half_way.set()
        while True:
            try:
                await put(client, PREFIX + b"%06d" % n, b"x")
                break
            except EtcdError:
                await asyncio.sleep(0.02)  # etcd is being restarted: only trying again tells when it is back


async def test_a_live_watch_goes_on_over_kill_9_and_restart(own_etcd: EtcdProcess) -> None:
    async with Client([own_etcd.endpoint]) as client, asyncio.TaskGroup() as tasks:
        batches = client.watch(PREFIX)
        started = (await anext(batches)).revision
        half_way = asyncio.Event()
        writing = tasks.create_task(write_through_failures(client, 600, half_way))
        await half_way.wait()
        own_etcd.kill()
        await asyncio.to_thread(own_etcd.start)
        await writing
        end = await put(client, PREFIX + b"end", b"")
        seen = await revisions_seen(batches, end)
        truth = await revisions_seen(client.watch(PREFIX, start=started + 1), end)
        assert seen == truth
        assert len(seen) >= 601


async def test_a_watch_killed_while_it_catches_up_misses_nothing(own_etcd: EtcdProcess) -> None:
    async with Client([own_etcd.endpoint]) as client:
        await write(client, 0, 4000)
        end = await put(client, PREFIX + b"end", b"")
        batches = client.watch(PREFIX, start=1)
        seen: list[int] = []
        while not seen:  # etcd hands out a thousand revisions at a time
            seen += [change.mod_revision for change in (await anext(batches)).changes]
        own_etcd.kill()
        assert len(seen) < 4000
        await asyncio.to_thread(own_etcd.start)
        seen += await revisions_seen(batches, end)
        assert seen == list(range(seen[0], end + 1))
        assert len(seen) == 4001


async def test_catching_up_on_more_than_grpcs_usual_message_limit(etcd: str) -> None:
    async with Client([etcd]) as client:
        start = await put(client, PREFIX + b"start", b"")
        await write(client, 0, 1200, size=8192)
        end = await put(client, PREFIX + b"end", b"")
        assert await revisions_seen(client.watch(PREFIX, start=start), end) == list(range(start, end + 1))


async def test_history_that_was_compacted_is_an_error_and_not_a_gap(etcd: str) -> None:
    async with Client([etcd]) as client:
        start = await put(client, PREFIX + b"a", b"")
        await write(client, 0, 10)
        await client.compact(start + 5)
        async with aclosing(client.watch(PREFIX, start=start)) as batches:
            with pytest.raises(Compacted):
                async for batch in batches:
                    assert not batch.changes


async def test_a_follower_that_was_away_over_a_compaction_is_told_to_look(etcd: str, store: EtcdStore) -> None:
    proxy = FaultProxy(etcd)
    async with (
        Client([etcd]) as direct,
        proxy.running(),
        EtcdStore.connect([proxy.endpoint]) as ours,
        aclosing(ours.changes("/watched/")) as revisions,
    ):
        await anext(revisions)
        proxy.block()
        proxy.cut()
        await write(direct, 0, 10)
        end = await put(direct, PREFIX + b"000000", b"last")
        await direct.compact(end)
        proxy.heal()
        assert await anext(revisions) >= end
        assert (await ours.read("/watched/")).values["/watched/000000"] == b"last"


@pytest.mark.parametrize("loss", ["wiped", "restored"])
async def test_a_store_whose_revision_went_back_is_an_error_and_not_a_silence(
    own_etcd: EtcdProcess, tmp_path: Path, loss: str
) -> None:
    """etcd itself would wait for the revision to come, and be silent until then."""
    async with Client([own_etcd.endpoint]) as client, aclosing(client.watch(PREFIX)) as batches:
        await anext(batches)
        await asyncio.to_thread(own_etcd.save, tmp_path / "backup")
        end = await put(client, PREFIX + b"a", b"")
        await anext(batches)
        if loss == "wiped":
            own_etcd.wipe()
        else:
            await asyncio.to_thread(own_etcd.restore, tmp_path / "backup")
        await asyncio.to_thread(own_etcd.start)
        async with asyncio.timeout(10):
            with pytest.raises(HistoryReplaced, match=f"was at {end} before"):
                await anext(batches)


async def test_one_member_that_lags_behind_is_left_for_another(etcd: str, tmp_path: Path) -> None:
    """An endpoint of another, emptier cluster stands for it: its revision is lower than what was seen."""
    behind = EtcdProcess(tmp_path)
    behind.start()
    try:
        async with Client([etcd]) as direct, Client([etcd, behind.endpoint]) as client:
            await write(direct, 0, 20)
            start = await put(direct, PREFIX + b"a", b"")
            for _ in range(8):  # it begins at either
                async with asyncio.timeout(10), aclosing(client.watch(PREFIX, start=start)) as batches:
                    assert [change.mod_revision async for change in changes_until(batches, start)] == [start]
                client._endpoints.leave(client._endpoints.current)
    finally:
        behind.kill()


async def changes_until(batches: AsyncGenerator[Batch, None], last: int) -> AsyncGenerator[Change, None]:
    async for batch in batches_until(batches, last):
        for change in batch.changes:
            yield change


async def test_a_watch_tells_its_breaks_and_their_end(own_etcd: EtcdProcess) -> None:
    told: list[bool] = []
    async with (
        Client([own_etcd.endpoint]) as client,
        aclosing(client.watch(PREFIX, connected=told.append)) as batches,
    ):
        await anext(batches)
        own_etcd.kill()
        news = asyncio.ensure_future(anext(batches))
        await asyncio.to_thread(own_etcd.start)
        await put(client, PREFIX + b"a", b"")
        await news
    assert (told[0], told[-1], False in told) == (True, True, True)


async def test_deletions_are_seen_as_such(etcd: str) -> None:
    async with Client([etcd]) as client:
        start = await put(client, PREFIX + b"a", b"1")
        end = (await client.transact(Transaction([], deletes=[PREFIX + b"a"]))).revision
        async with aclosing(client.watch(PREFIX, start=start)) as batches:
            changes = [change async for batch in batches_until(batches, end) for change in batch.changes]
        assert [change.value for change in changes] == [b"1", None]


async def batches_until(batches: AsyncGenerator[Batch, None], last: int) -> AsyncGenerator[Batch, None]:
    async for batch in batches:
        yield batch
        if batch.revision >= last:
            return


async def test_a_silent_endpoint_is_left_for_another(etcd: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection stays open and swallows everything; only the watch's own probe can tell."""
    monkeypatch.setattr(watch_module, "IDLE_SECONDS", 0.5)
    monkeypatch.setattr(watch_module, "ANSWER_SECONDS", 0.5)
    async with AsyncExitStack() as stack:
        proxies = [await stack.enter_async_context(FaultProxy(etcd).running()) for _ in range(2)]
        direct = await stack.enter_async_context(Client([etcd]))
        client = await stack.enter_async_context(Client([proxy.endpoint for proxy in proxies]))
        batches = await stack.enter_async_context(aclosing(client.watch(PREFIX)))
        await anext(batches)
        (used,) = [proxy for proxy in proxies if proxy.connections]
        used.block()
        revision = await put(direct, PREFIX + b"news", b"")
        assert (await anext(batches)).revision == revision


async def test_an_idle_watch_of_a_healthy_etcd_is_left_alone(
    etcd: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(watch_module, "IDLE_SECONDS", 0.1)
    async with Client([etcd]) as client, aclosing(client.watch(PREFIX)) as batches:
        await anext(batches)
        waiting = asyncio.ensure_future(anext(batches))
        await asyncio.wait({waiting}, timeout=1)  # ten probes
        revision = await put(client, PREFIX + b"a", b"")
        assert (await waiting).revision == revision
    assert "broke" not in caplog.text


async def test_cancelled_watches_leave_nothing_on_the_server(own_etcd: EtcdProcess) -> None:
    watchers = "etcd_debugging_mvcc_watcher_total"
    async with Client([own_etcd.endpoint]) as client:
        all_watches = [client.watch(PREFIX) for _ in range(50)]
        await asyncio.gather(*(anext(batches) for batches in all_watches))
        assert own_etcd.metric(watchers) == 50
        waiting = [asyncio.ensure_future(anext(batches)) for batches in all_watches]
        await asyncio.sleep(0)
        for each in waiting:
            each.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        async with asyncio.timeout(10):
            while own_etcd.metric(watchers):  # noqa: ASYNC110  # the server tells nobody when it has cleaned up
                await asyncio.sleep(0.02)
