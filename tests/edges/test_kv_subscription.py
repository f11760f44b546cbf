"""Following vLLM's KV events over real sockets, whatever the publisher and the connection do."""

from __future__ import annotations

import asyncio
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, count
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq
import zmq.asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deepinfer.engine_shim.engines.vllm.kv_subscription import follow, kv_events_flags
from deepinfer.engine_shim.kv_chain import next_name, token_bytes
from deepinfer.engine_shim.kv_contents import BlockKey, KvContents, by_group, digest_of
from deepinfer.fleet.errors import EngineWillNotStart
from tests.kv_publisher import KvPublisher
from tests.kv_reader import GRAIN, following, keys, until

_times = count(1)


def stored(*hashes: int, group: int = 0) -> list[dict[str, Any]]:
    """First blocks of prompts, each of four times the token that is its hash."""
    return [
        {
            "type": "BlockStored",
            "block_hashes": [said],
            "parent_block_hash": None,
            "token_ids": [said] * GRAIN,
            "block_size": GRAIN,
            "lora_id": None,
            "medium": "GPU",
            "lora_name": None,
            "group_idx": group,
        }
        for said in hashes
    ]


def name(said: int) -> int:
    return next_name(0, token_bytes([said] * GRAIN))


def removed(*hashes: int, group: int = 0) -> list[dict[str, Any]]:
    return [{"type": "BlockRemoved", "block_hashes": list(hashes), "medium": "GPU", "group_idx": group}]


CLEARED: list[dict[str, Any]] = [{"type": "AllBlocksCleared"}]


def batch(*events: list[dict[str, Any]]) -> bytes:
    """Each with a time of its own, as vLLM's."""
    return msgspec.msgpack.encode([float(next(_times)), [event for some in events for event in some], 0])


@contextmanager
def private_folder() -> Iterator[Path]:
    """Short, for a socket's path has 103 bytes."""
    with tempfile.TemporaryDirectory() as folder:
        kv_events_flags(Path(folder))
        yield Path(folder)


def digest(held: set[BlockKey]) -> int:
    return digest_of(by_group(held))


async def holds(contents: KvContents, *hashes: int) -> None:
    await until(contents, lambda: keys(contents) == {(0, name(said)) for said in hashes})


@pytest.mark.parametrize("old", [False, True])
async def test_what_was_told_before_it_came_is_replayed(old: bool) -> None:
    with private_folder() as folder:
        publisher = KvPublisher(folder, old=old)
        await publisher.publish(batch(stored(1, 2)))
        await publisher.publish(batch(removed(1), stored(3)))
        async with following(folder) as contents:
            await holds(contents, 2, 3)
            assert contents.digest == digest({(0, name(2)), (0, name(3))})
            await publisher.publish(batch(stored(4)))
            await holds(contents, 2, 3, 4)
        publisher.close()


async def test_it_waits_for_a_publisher_that_is_not_there_yet() -> None:
    with private_folder() as folder:
        async with following(folder) as contents:
            await asyncio.sleep(0)
            publisher = KvPublisher(folder)
            await publisher.publish(batch(stored(1)))
            await holds(contents, 1)
            publisher.close()


async def test_a_lost_batch_is_noticed_by_the_next_one() -> None:
    with private_folder() as folder:
        publisher = KvPublisher(folder)
        await publisher.publish(batch(stored(1)))
        async with following(folder) as contents:
            await holds(contents, 1)
            epoch = contents.boot_epoch
            await publisher.publish(batch(stored(2)), times=0)
            await publisher.publish(batch(removed(1)))
            await holds(contents, 2)
            assert contents.boot_epoch == epoch  # healed, not begun anew
        publisher.close()


async def test_a_lost_last_batch_is_noticed_and_then_nothing_is_asked() -> None:
    with private_folder() as folder:
        publisher = KvPublisher(folder)
        async with following(folder) as contents:
            await publisher.publish(batch(stored(1)))
            await holds(contents, 1)
            await publisher.publish(batch(stored(2)))
            await publisher.publish(batch(removed(1, 2)), times=0)
            await holds(contents)
            await asyncio.sleep(1)  # two pauses: whatever was to be asked has been
            asked = publisher.asked
            await asyncio.sleep(1)
            assert publisher.asked == asked
        publisher.close()


async def test_an_only_batch_that_is_lost_is_noticed_when_the_engine_was_seen_to_work() -> None:
    with private_folder() as folder:
        publisher = KvPublisher(folder)
        contents, worked = KvContents(1), asyncio.Event()
        task = asyncio.create_task(follow(folder, contents, GRAIN, worked=worked))
        await publisher.publish(batch(stored(1)))
        await holds(contents, 1)
        await asyncio.sleep(1)  # the check after the first one is over
        await publisher.publish(batch(stored(2)), times=0)
        worked.set()
        await holds(contents, 1, 2)
        task.cancel()
        publisher.close()


@pytest.mark.parametrize("silently", [False, True])
async def test_what_a_publisher_held_that_began_anew_is_forgotten(
    silently: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with private_folder() as folder:
        publisher = KvPublisher(folder)
        async with following(folder) as contents:
            for number in range(1, 6):
                await publisher.publish(batch(stored(number)))
            await holds(contents, 1, 2, 3, 4, 5)
            epoch = contents.boot_epoch
            publisher.begin_anew() if silently else publisher.restart()
            for number in range(11, 13):
                await publisher.publish(batch(stored(number)))
            await holds(contents, 11, 12)
            assert contents.boot_epoch > epoch
            assert "forgotten" in caplog.text
        publisher.close()


async def test_an_idle_engine_that_died_holds_nothing() -> None:
    with private_folder() as folder:
        publisher = KvPublisher(folder)
        async with following(folder) as contents:
            await publisher.publish(batch(stored(1)))
            await holds(contents, 1)
            publisher.close()
            await holds(contents)


async def test_what_the_publisher_does_not_keep_any_more_is_not_claimed(caplog: pytest.LogCaptureFixture) -> None:
    with private_folder() as folder:
        publisher = KvPublisher(folder, kept=3)
        async with following(folder) as contents:
            await publisher.publish(batch(stored(1, 2)))
            await holds(contents, 1, 2)
            epoch = contents.boot_epoch
            await publisher.publish(batch(removed(1)), times=0)
            for number in range(3, 6):
                await publisher.publish(batch(stored(number)), times=0)
            await publisher.publish(batch(stored(6)))
            await holds(contents, 4, 5, 6)
            assert contents.boot_epoch > epoch
            assert "were lost" in caplog.text
        publisher.close()


async def test_a_number_without_a_batch_is_a_loss_and_not_waited_for() -> None:
    with private_folder() as folder:
        publisher = KvPublisher(folder)
        async with following(folder) as contents:
            await publisher.publish(batch(stored(1)))
            await holds(contents, 1)
            await publisher.skip()
            await publisher.publish(batch(stored(2)))
            await holds(contents, 2)
            await publisher.publish(batch(stored(3)))
            await holds(contents, 2, 3)
        publisher.close()


async def test_a_batch_that_cannot_be_read_is_a_loss(caplog: pytest.LogCaptureFixture) -> None:
    with private_folder() as folder:
        publisher = KvPublisher(folder)
        async with following(folder) as contents:
            await publisher.publish(batch(stored(1)))
            await holds(contents, 1)
            await publisher.publish(b"\xc1")
            await publisher.publish(batch(stored(2)))
            await holds(contents, 2)
            assert "cannot be read" in caplog.text
        publisher.close()


async def test_a_long_history_is_replayed_whole() -> None:
    with private_folder() as folder:
        publisher = KvPublisher(folder)
        for number in range(1, 5001):
            await publisher.publish(batch(stored(number)), times=0)
        async with following(folder) as contents:
            await until(contents, lambda: len(contents) == 5000)
        publisher.close()


async def test_it_ends_although_nobody_answers_its_question() -> None:
    with private_folder() as folder, zmq.asyncio.Context() as context, context.socket(zmq.XPUB) as events:
        events.bind(f"ipc://{folder}/events")
        async with following(folder) as contents:
            assert await events.recv() == b"\x01kv"  # it has subscribed
            await asyncio.sleep(0.2)  # and asked for a replay, on a socket that nobody has bound
            assert len(contents) == 0


@pytest.mark.parametrize("turns", range(0, 30, 3))
async def test_it_ends_in_the_moment_the_publisher_does(turns: int) -> None:
    with private_folder() as folder:
        publisher = KvPublisher(folder)
        async with following(folder) as contents:
            await publisher.publish(batch(stored(1)))
            await holds(contents, 1)
            publisher.close()
            for _ in range(turns):
                await asyncio.sleep(0)


_group = st.integers(0, 1)
_hashes = st.lists(st.integers(1, 12), min_size=1, max_size=4, unique=True)
_event = st.one_of(
    st.builds(lambda hashes, group: stored(*hashes, group=group), _hashes, _group),
    st.builds(lambda hashes, group: removed(*hashes, group=group), _hashes, _group),
    st.just(CLEARED),
)
_step = st.one_of(
    st.tuples(st.lists(_event, min_size=1, max_size=3), st.sampled_from([0, 1, 1, 1, 2])),
    st.sampled_from(["restart", "begin anew", "turn"]),
)


def expected(held: set[BlockKey], events: list[list[dict[str, Any]]]) -> set[BlockKey]:
    """Told apart from the code under test: what vLLM means."""
    for event in chain.from_iterable(events):
        if event["type"] == "AllBlocksCleared":
            held = set()
        else:
            meant = {(event["group_idx"], name(said)) for said in event["block_hashes"]}
            held = held | meant if event["type"] == "BlockStored" else held - meant
    return held


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=st.lists(_step, max_size=25))
def test_drops_doubles_and_restarts_end_in_what_the_engine_holds(steps: list[Any]) -> None:
    async def run() -> None:
        held: set[BlockKey] = set()
        with private_folder() as folder:
            publisher = KvPublisher(folder)
            async with following(folder) as contents:
                least = 0
                for step in [*steps, ([stored(99)], 1)]:
                    if step == "turn":
                        await asyncio.sleep(0.005)  # lets some of it arrive
                    elif isinstance(step, str):
                        publisher.restart() if step == "restart" else publisher.begin_anew()
                        held = set()
                        least = 1  # on the same connections, only its first batch tells that it began anew
                    else:
                        held = expected(held, step[0])
                        await publisher.publish(batch(*step[0]), times=max(least, step[1]))
                        least = 0
                await until(contents, lambda: keys(contents) == held)
                assert contents.digest == digest(held)
            publisher.close()

    with quiet():
        asyncio.run(run())


@contextmanager
def quiet() -> Iterator[None]:
    """Thousands of warnings are expected."""
    logger = logging.getLogger("deepinfer.engine_shim.engines.vllm")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def test_the_flags_open_unix_sockets_in_a_folder_of_this_user_s(tmp_path: Path) -> None:
    folder = tmp_path / "kv"
    flags = kv_events_flags(folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {flags["endpoint"], flags["replay_endpoint"]} == {f"ipc://{folder}/events", f"ipc://{folder}/replay"}
    folder.chmod(0o750)
    with pytest.raises(EngineWillNotStart, match="chmod it to 700"):
        kv_events_flags(folder)
    with pytest.raises(EngineWillNotStart, match="shorter state folder"):
        kv_events_flags(tmp_path / ("x" * 100))
    with pytest.raises(EngineWillNotStart, match="2 data-parallel ranks"):
        kv_events_flags(tmp_path / "other", data_parallel_ranks=2)
