"""Publishes KV batches as vLLM does: a PUB socket, a ROUTER socket for replays, the newest batches kept.

Unlike vLLM's own, what it sends can be dropped, sent twice and begun anew from outside.
"""

from __future__ import annotations

import asyncio
from collections import deque
from pathlib import Path

import zmq
import zmq.asyncio

END = b"\xff" * 8


class KvPublisher:
    """On the sockets that vLLM would bind in `folder`. `asked` counts the replays."""

    def __init__(self, folder: Path, *, kept: int = 10_000, old: bool = False) -> None:
        self.asked = 0
        self._folder = folder
        self._topic = () if old else (b"kv",)  # of replays; older versions leave it out
        self._kept = kept
        self._batches: deque[tuple[int, bytes]] = deque(maxlen=kept)
        self._next = 0
        self._bind()

    def _bind(self) -> None:
        self._context = zmq.asyncio.Context()
        self._events: zmq.asyncio.Socket = self._context.socket(zmq.PUB)
        self._replays: zmq.asyncio.Socket = self._context.socket(zmq.ROUTER)
        self._events.bind(f"ipc://{self._folder}/events")
        self._replays.bind(f"ipc://{self._folder}/replay")
        self._answering = asyncio.get_running_loop().create_task(self._answer())

    async def publish(self, payload: bytes, *, times: int = 1) -> None:
        """Not at all, once or more often; it is kept for a replay either way."""
        for _ in range(times):
            await self._events.send_multipart([b"kv", self._next.to_bytes(8, "big"), payload])
        self._batches.append((self._next, payload))
        self._next += 1

    async def skip(self) -> None:
        """A number that no batch has: one that could not be encoded."""
        self._next += 1

    def begin_anew(self) -> None:
        """Numbers from 0 again, on the same connections."""
        self._batches.clear()
        self._next = 0

    def restart(self) -> None:
        """As a new process would."""
        self.close()
        self.begin_anew()
        self._bind()

    def close(self) -> None:
        """The sockets' files are gone after it, so that they do not go when others have taken their place."""
        self._answering.cancel()
        self._context.destroy(linger=0)

    async def _answer(self) -> None:
        while True:
            asker, _, begin = await self._replays.recv_multipart()
            self.asked += 1
            for number, payload in tuple(self._batches):
                if number >= int.from_bytes(begin, "big"):
                    frames = [asker, b"", *self._topic, number.to_bytes(8, "big"), payload]
                    await self._replays.send_multipart(frames)
            await self._replays.send_multipart([asker, b"", *((b"",) if self._topic else ()), END, b""])
