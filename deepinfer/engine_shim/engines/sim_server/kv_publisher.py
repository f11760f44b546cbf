"""Tells the engine's KV contents as vLLM does: batches on a PUB socket, the newest once more to whoever asks a ROUTER.

A frame is (topic, number, batch); a batch is msgpack: [time, events, data-parallel rank].
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import msgspec
import zmq
import zmq.asyncio

from deepinfer.engine_shim.engines.sim_server.flags import KvEventsConfig
from deepinfer.engine_shim.kv_contents import KvBlock, KvChange, KvContents

_END: Final = b"\xff" * 8


@contextmanager
def publishing(contents: KvContents, config: KvEventsConfig) -> Iterator[None]:
    """From now on; needs a running event loop, for the replays."""
    with zmq.Context() as context, context.socket(zmq.PUB) as events:
        events.set_hwm(config.hwm)
        events.linger = 0
        _open(events, config.endpoint)
        publisher = _Publisher(contents, config, events)
        answering = None
        if config.replay_endpoint is not None:
            replays = zmq.asyncio.Context.shadow(context).socket(zmq.ROUTER)
            replays.linger = 0
            _open(replays, config.replay_endpoint)
            answering = asyncio.create_task(publisher.answer(replays), name="KV replays")
        forget = contents.listen(publisher.publish)
        try:
            yield
        finally:
            forget()
            if answering is not None:
                answering.cancel()
                replays.close(linger=0)


def _open(socket: zmq.Socket[Any], endpoint: str) -> None:
    """vLLM's rule: what can only be meant as an address of its own is bound, anything else is connected to."""
    if "*" in endpoint or "::" in endpoint or endpoint.startswith(("ipc://", "inproc://")):
        socket.bind(endpoint)
    else:
        socket.connect(endpoint)


class _Publisher:
    def __init__(self, contents: KvContents, config: KvEventsConfig, events: zmq.Socket[bytes]) -> None:
        self._contents = contents
        self._events = events
        self._topic = config.topic.encode()
        self._kept: deque[tuple[bytes, bytes]] = deque(maxlen=config.buffer_steps)
        self._next = 0

    def publish(self, change: KvChange) -> None:
        """A PUB socket never waits: what does not fit into a reader's queue is lost to it, and can be replayed."""
        batch = msgspec.msgpack.encode([time.time(), list(self._told(change)), 0])
        number = self._next.to_bytes(8, "big")
        self._next += 1
        self._kept.append((number, batch))
        self._events.send_multipart([self._topic, number, batch])

    async def answer(self, replays: zmq.asyncio.Socket) -> None:
        while True:
            asker, _, begin = await replays.recv_multipart()
            for number, batch in [kept for kept in self._kept if kept[0] >= begin]:
                await replays.send_multipart([asker, b"", self._topic, number, batch])
            await replays.send_multipart([asker, b"", b"", _END, b""])

    def _told(self, change: KvChange) -> Iterator[dict[str, Any]]:
        """In the order in which a change happens."""
        if change.cleared:
            yield {"type": "AllBlocksCleared"}
        if change.removed:
            yield {"type": "BlockRemoved", "block_hashes": [key[1] for key in change.removed], "medium": "GPU"}
        for run in _runs(change.stored):
            yield {
                "type": "BlockStored",
                "block_hashes": [block.name for block in run],
                "parent_block_hash": run[0].parent or None,
                "token_ids": [token for block in run for token in block.token_ids],
                "block_size": self._contents.groups()[0].block_size,
                "lora_id": None,
                "medium": "GPU",
            }


def _runs(blocks: tuple[KvBlock, ...]) -> Iterator[list[KvBlock]]:
    """Blocks that follow one another in one sequence are told together."""
    run: list[KvBlock] = []
    for block in blocks:
        if run and block.parent != run[-1].name:
            yield run
            run = []
        run.append(block)
    if run:
        yield run
