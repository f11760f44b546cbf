"""A reader's copy of an engine's KV contents, over a real WatchState, and with messages lost on the way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepinfer.engine_shim import state_watch
from deepinfer.engine_shim.client import EngineClient
from deepinfer.engine_shim.kv_contents import BlockKey, KvBlock, KvContents, KvGroup, by_group, digest_of
from deepinfer.engine_shim.kv_mirror import KeySet, KvMirror, StateDrift, mirrored
from deepinfer.engine_shim.listening import add_loopback_port
from deepinfer.engine_shim.served_engine import Receive, Scope, Send
from deepinfer.engine_shim.server import engine_server
from deepinfer.engine_shim.state_wire import EngineState, state_from_bytes, state_to_bytes
from deepinfer.engine_shim.status import ShimStatus
from deepinfer.engine_shim.wire import ShimPhase
from deepinfer.fleet.launch import EngineLaunch
from deepinfer.fleet.spec import EngineKind
from tests.shim_in_process import engine_over


def block(said: int, group: int = 0) -> KvBlock:
    return KvBlock(said, said - 1, (said, said), group)


class Copy(KvMirror):
    """With its own shelf."""

    def __init__(self) -> None:
        self.held = KeySet()
        super().__init__(self.held)


def same(mirror: Copy, contents: KvContents) -> bool:
    return (mirror.held, mirror.digest, mirror.sequence, mirror.boot_epoch) == (
        set(contents),
        contents.digest,
        contents.sequence,
        contents.boot_epoch,
    )


class LosingClient:
    """Loses message number `lost` of its first watch, as if it had never been sent."""

    def __init__(self, client: EngineClient, lost: int) -> None:
        self.watches = 0
        self.sent: asyncio.Queue[int] = asyncio.Queue()  # the lost ones too
        self._client = client
        self._lost = lost

    async def watch(self, *, kv: bool = False) -> AsyncIterator[EngineState]:
        self.watches += 1
        number = 0
        async for state in self._client.watch(kv=kv):
            number += 1
            self.sent.put_nowait(number)
            if self.watches > 1 or number != self._lost:
                yield state


@asynccontextmanager
async def serving(contents: KvContents, folder: Path) -> AsyncIterator[EngineClient]:
    """A shim's gRPC service over these contents."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise NotImplementedError

    launch = EngineLaunch(
        placement="chat-aaaaa-0",
        epoch=1,
        engine=EngineKind.SIM,
        served_names=("chat",),
        model_path=None,
        device="cpu",
        engine_args={},
        socket=folder / "shim.sock",
    )
    status = ShimStatus(launch)
    status.ready(engine_over(app, contents))
    server = engine_server(status)
    client = EngineClient(add_loopback_port(server, "127.0.0.1"))
    await server.start()
    yield client
    await client.close()
    await server.stop(None)


async def follow_until_same(states: AsyncIterator[EngineState], mirror: Copy, contents: KvContents) -> None:
    async with asyncio.timeout(20):
        while not (mirror.whole and same(mirror, contents)):
            await anext(states)


async def test_a_copy_follows_changes_clearing_and_a_new_beginning(tmp_path: Path) -> None:
    contents, mirror = KvContents(5), Copy()
    contents.describe(KvGroup(0, 2))
    contents.change([block(1), block(2)])
    async with serving(contents, tmp_path) as client, aclosing(mirrored(client, mirror)) as states:
        await follow_until_same(states, mirror, contents)
        assert mirror.held == {(0, 1), (0, 2)}
        contents.describe(KvGroup(1, 2, "sliding_window", 3))
        contents.change([block(2, group=1), block(2**64 - 1)], [(0, 1)])
        contents.change(removed=[(0, 2)])
        await follow_until_same(states, mirror, contents)
        assert mirror.held == {(1, 2), (0, 2**64 - 1)}
        assert mirror.groups == contents.groups()
        contents.clear()
        contents.change([block(7)])
        await follow_until_same(states, mirror, contents)
        contents.restart(4)
        assert contents.boot_epoch == 6  # never backwards
        await follow_until_same(states, mirror, contents)
        assert not mirror.held
    assert not mirror.whole


@pytest.mark.parametrize("lost", [1, 3])
async def test_a_lost_message_is_noticed_and_the_watch_opened_again(
    tmp_path: Path, lost: int, caplog: pytest.LogCaptureFixture
) -> None:
    contents, mirror = KvContents(5), Copy()
    async with serving(contents, tmp_path) as client:
        losing = LosingClient(client, lost)
        async with aclosing(mirrored(losing, mirror)) as states, asyncio.TaskGroup() as tasks:
            following = tasks.create_task(until_holding(states, mirror, (0, 9)))
            for number in range(1, lost + 1):
                await losing.sent.get()  # one message a change, so that what is lost is just one change
                contents.change([block(number)], [(0, number - 2)])
            contents.change([block(9)])
            await following
            assert same(mirror, contents)
        assert losing.watches == 2
        assert "has drifted" in caplog.text


def test_a_snapshot_that_is_older_than_what_came_before_it_is_no_news() -> None:
    mirror = Copy()
    newest = EngineState(7, 5, snapshot=True, phase=ShimPhase.READY)
    for older in (replace(newest, boot_epoch=6, sequence=9), replace(newest, sequence=4)):
        mirror.apply(newest)
        mirror.apply(replace(newest, sequence=6))
        with pytest.raises(StateDrift, match="older than what came before"):
            mirror.apply(older)
        mirror.apply(older)  # of a new watch, it is what there is


async def test_an_engine_whose_snapshots_do_not_fit_is_not_asked_for_ever() -> None:
    class Wrong:
        watches = 0

        async def watch(self, *, kv: bool = False) -> AsyncIterator[EngineState]:
            self.watches += 1
            yield replace(first(), digest=1 + self.watches)

    wrong = Wrong()
    with pytest.raises(StateDrift):
        _ = [state async for state in mirrored(wrong, Copy())]
    assert wrong.watches == 2


async def until_holding(states: AsyncIterator[EngineState], mirror: Copy, key: BlockKey) -> None:
    async with asyncio.timeout(20):
        while key not in mirror.held:
            await anext(states)


async def test_a_snapshot_may_come_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_watch, "_MESSAGE_BLOCKS", 4)
    contents, mirror = KvContents(5), Copy()
    contents.describe(KvGroup(0, 2))
    contents.change(map(block, range(1, 12)))
    async with serving(contents, tmp_path) as client, aclosing(mirrored(client, mirror)) as states:
        seen = [(state.snapshot, state.more, len(state.stored[0])) for state in [await anext(states) for _ in range(3)]]
        assert seen == [(True, True, 4), (False, True, 4), (False, False, 3)]
        assert same(mirror, contents)
        contents.change([block(20)])
        await follow_until_same(states, mirror, contents)


def state(**fields: Any) -> EngineState:
    begin: dict[str, Any] = {"boot_epoch": 1, "sequence": 1, "snapshot": False, "phase": ShimPhase.READY}
    return EngineState(**begin | fields)


def first() -> EngineState:
    return state(snapshot=True, sequence=3, stored={0: [1]}, digest=1)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (state(boot_epoch=2, sequence=4, after=3), "began anew"),
        (state(sequence=6, after=5, digest=1), "builds on 5"),
        (state(sequence=4, after=3, digest=7), "digests differ"),
        (state(sequence=3, after=3, more=True), "outside"),
        (replace(first(), digest=2), "digests differ"),
    ],
)
def test_what_does_not_fit_empties_the_copy(wrong: EngineState, words: str) -> None:
    mirror = Copy()
    mirror.apply(first())
    with pytest.raises(StateDrift, match=words):
        mirror.apply(wrong)
    assert (mirror.held, mirror.whole) == (set(), False)
    with pytest.raises(StateDrift, match="not begun with a snapshot"):
        mirror.apply(state(sequence=4, after=3))
    mirror.apply(first())
    assert mirror.whole


_keys = st.tuples(st.integers(0, 2), st.integers(1, 9))


@settings(max_examples=50)
@given(steps=st.lists(st.tuples(st.lists(_keys, max_size=4), st.lists(_keys, max_size=4), st.sampled_from("cccar"))))
def test_every_change_carried_over_the_wire_leaves_the_same_set(
    steps: list[tuple[list[tuple[int, int]], list[tuple[int, int]], str]],
) -> None:
    contents, mirror, held = KvContents(1), Copy(), set[tuple[int, int]]()
    mirror.apply(state(snapshot=True, sequence=0))
    for stored, removed, kind in steps:
        before = contents.sequence
        if kind == "a":
            contents.clear()
        elif kind == "r":
            contents.restart(contents.boot_epoch)
        else:
            contents.change([block(said, group) for group, said in stored], removed)
        gone = held & set(removed)
        came = set(stored) - (held - gone)
        held = (held - gone) | came if kind == "c" else set()
        told = state(
            boot_epoch=contents.boot_epoch,
            sequence=contents.sequence,
            after=before,
            digest=contents.digest,
            snapshot=kind != "c",
            stored=by_group(came) if kind == "c" else {},
            removed=by_group(gone) if kind == "c" else {},
        )
        mirror.apply(state_from_bytes(state_to_bytes(told)))
        assert mirror.held == set(contents) == held
        assert contents.digest == digest_of(by_group(held))
