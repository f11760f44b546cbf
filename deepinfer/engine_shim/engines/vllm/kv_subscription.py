"""Follows the KV events of a vLLM on this machine into a `KvContents`.

vLLM's engine core publishes on a ZeroMQ PUB socket and answers requests for older batches on a ROUTER socket. Both are
unix sockets in a folder that only this user can enter: nothing listens on a network. One pair is one engine core, so
more than one data-parallel rank is refused.

A batch can be lost: while the connection is made, or when a queue was full. A later one shows that; and after each
pause in the traffic the replay socket is asked whether the last one came. While nothing comes nothing is asked.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NoReturn

import msgspec
import zmq
import zmq.asyncio
from zmq.utils.monitor import recv_monitor_message

from deepinfer.engine_shim.engines.vllm.kv_effects import apply
from deepinfer.engine_shim.engines.vllm.kv_events import EventDecoder
from deepinfer.engine_shim.engines.vllm.kv_names import BlockNames
from deepinfer.engine_shim.engines.vllm.kv_order import BatchOrder
from deepinfer.engine_shim.kv_contents import KvContents
from deepinfer.fleet.errors import EngineWillNotStart

log = logging.getLogger(__name__)

_TOPIC: Final = "kv"
_KEPT_BATCHES: Final = 10_000
"""What vLLM keeps for a replay: minutes of steps, some 20 MB."""
_QUEUED_BATCHES: Final = 100_000
_LONGEST_SOCKET_PATH: Final = 103  # what every Unix we run on takes
_PAUSE_SECONDS: Final = 0.5
"""So long after the last batch the replay socket is asked whether it was the last one."""
_ANSWER_SECONDS: Final = 5.0
"""vLLM answers within 0.1 s, when its core lets it."""
_END: Final = b"\xff" * 8


def kv_events_flags(folder: Path, *, data_parallel_ranks: int = 1) -> dict[str, Any]:
    """The value of vLLM's --kv-events-config. Makes `folder`, which must be this user's alone; `EngineWillNotStart`."""
    if data_parallel_ranks != 1:
        raise EngineWillNotStart(
            f"KV events of {data_parallel_ranks} data-parallel ranks cannot be followed;"
            " use data_parallel_size 1 and more replicas, or switch KV events off."
        )
    if len(bytes(folder / "replay")) > _LONGEST_SOCKET_PATH:
        raise EngineWillNotStart(f"{folder} is too long a path for unix sockets; use a shorter state folder.")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_mode & 0o077:
        raise EngineWillNotStart(f"Others can enter {folder}, where the KV events would be told; chmod it to 700.")
    return {
        "enable_kv_cache_events": True,
        "publisher": "zmq",
        "endpoint": _endpoint(folder),
        "replay_endpoint": _replay_endpoint(folder),
        "buffer_steps": _KEPT_BATCHES,
        "hwm": _QUEUED_BATCHES,
        "topic": _TOPIC,
    }


def _endpoint(folder: Path) -> str:
    return f"ipc://{folder}/events"


def _replay_endpoint(folder: Path) -> str:
    return f"ipc://{folder}/replay"


async def follow(folder: Path, contents: KvContents, grain: int, *, worked: asyncio.Event | None = None) -> NoReturn:
    """Keep `contents` what the engine says, until cancelled; the engine need not be there yet, and may come again.

    `grain`: tokens of its smallest block.
    Whoever sees the engine work may set `worked`: then a batch is missed even if it was the only one.
    """
    with _context() as context:
        while True:
            await _Connection(context, folder, _Contents(contents, BlockNames(grain))).run(worked or asyncio.Event())
            log.warning("vLLM's engine core has ended its KV events; what it held is forgotten.")
            contents.restart(time.time_ns())


@contextmanager
def _context() -> Iterator[zmq.asyncio.Context]:
    context = zmq.asyncio.Context()
    context.linger = 0  # a question that nobody takes must not keep the process from ending
    try:
        yield context
    finally:
        context.destroy(linger=0)


class _Contents:
    """The sink of the batches."""

    def __init__(self, contents: KvContents, names: BlockNames) -> None:
        self._contents = contents
        self._names = names
        self._decoder = EventDecoder()

    def take(self, payload: bytes) -> None:
        try:
            apply(self._decoder.decode(payload), self._names, self._contents)
        except msgspec.DecodeError as error:
            self.lost(f"a batch cannot be read: {error}")

    def lost(self, why: str) -> None:
        log.warning("KV events of vLLM were lost (%s); what it held is forgotten, and learned anew.", why)
        self._names.forget()
        self._contents.restart(time.time_ns())


class _Connection:
    """From one connection to the publisher to its end."""

    def __init__(self, context: zmq.asyncio.Context, folder: Path, contents: _Contents) -> None:
        self._context = context
        self._folder = folder
        self._order = BatchOrder(contents)
        self._replay_wanted = asyncio.Event()
        self._check: asyncio.TimerHandle | None = None

    async def run(self, worked: asyncio.Event) -> None:
        """Until the process that publishes has ended; no error, for a group that fails while cancelled hides that."""
        with self._context.socket(zmq.SUB) as events:
            events.set_hwm(_QUEUED_BATCHES)
            events.subscribe(_TOPIC.encode())
            monitor = events.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
            events.connect(_endpoint(self._folder))
            try:
                async with asyncio.TaskGroup() as tasks:
                    work = [tasks.create_task(w) for w in (self._listen(events), self._heal(), self._mind(worked))]
                    await self._until_disconnected(monitor)
                    for task in work:
                        task.cancel()
            finally:
                events.disable_monitor()
                if self._check is not None:
                    self._check.cancel()

    async def _until_disconnected(self, monitor: Any) -> None:
        while True:
            said = await recv_monitor_message(monitor)
            if said["event"] == zmq.EVENT_DISCONNECTED:
                return
            self._replay_wanted.set()
            self._check_soon()  # a batch may have come between the replay and the subscription

    async def _listen(self, events: zmq.asyncio.Socket) -> None:
        while True:
            _, sequence, payload = await events.recv_multipart()
            if self._order.live(int.from_bytes(sequence, "big"), payload):
                self._replay_wanted.set()
            self._check_soon()

    async def _mind(self, worked: asyncio.Event) -> None:
        while True:
            await worked.wait()
            worked.clear()
            self._check_soon()

    def _check_soon(self) -> None:
        if self._check is not None:
            self._check.cancel()
        self._check = asyncio.get_running_loop().call_later(_PAUSE_SECONDS, self._replay_wanted.set)

    async def _heal(self) -> None:
        """One replay at a time, each on a socket of its own: what was answered to an older request is not in it."""
        while True:
            await self._replay_wanted.wait()
            self._replay_wanted.clear()
            try:
                async with asyncio.timeout(_ANSWER_SECONDS):
                    again = await self._replay()
            except TimeoutError:
                again = True
            if again:
                self._replay_wanted.set()

    async def _replay(self) -> bool:
        """Whether another one is needed."""
        with self._context.socket(zmq.DEALER) as replays:
            replays.set_hwm(_QUEUED_BATCHES)
            replays.connect(_replay_endpoint(self._folder))
            await replays.send_multipart([b"", self._order.ask().to_bytes(8, "big")])
            async for sequence, payload in _answer(replays):
                self._order.replayed(sequence, payload)
        return self._order.replay_ends()


async def _answer(replays: zmq.asyncio.Socket) -> AsyncIterator[tuple[int, bytes]]:
    """Older versions put no topic before the number."""
    while True:
        *_, sequence, payload = await replays.recv_multipart()
        if sequence == _END:
            return
        yield int.from_bytes(sequence, "big"), payload
