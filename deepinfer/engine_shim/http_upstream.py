"""An engine whose own HTTP server takes the calls, as one in a container does: a pool of connections to it.

The shim beside such an engine computes nothing, so its end does not end the answers that run. Before the next call it
is asked again who is there, for a port may have become another's.
"""

from __future__ import annotations

import asyncio
from typing import Final

from deepinfer.engine_shim.answer import Answer
from deepinfer.engine_shim.connecting import connect
from deepinfer.engine_shim.cork import Cork
from deepinfer.engine_shim.frames import EngineCall
from deepinfer.engine_shim.http_connection import HttpConnection
from deepinfer.engine_shim.upstream import failed
from deepinfer.fleet.errors import EngineFailed

IDLE_SECONDS: Final = 4.0
"""How long a connection may wait for its next call. uvicorn, so vLLM's server, closes it after 5."""
MOST_IDLE: Final = 128


class HttpUpstream:
    """`broken` is why it cannot be used any more; "" while it can."""

    def __init__(self, endpoint: str, target: str, key: bytes = b"") -> None:
        self._endpoint = endpoint
        self._key = key
        self.broken = ""
        self._target = target
        self._own = ((b"host", endpoint.encode()), *(((b"authorization", b"Bearer " + key),) if key else ()))
        self._cork = Cork()
        self._doubted = False
        self._all: set[HttpConnection] = set()
        self._idle: dict[HttpConnection, None] = {}  # the one used last is the last
        self._now = asyncio.get_running_loop().time

    @property
    def usable(self) -> bool:
        return not self.broken and not self._doubted

    def ask(self, call: EngineCall) -> Answer | None:
        connection = self._used_last()
        return None if connection is None else connection.ask(call)

    async def call(self, call: EngineCall, asked: Answer | None = None) -> Answer:
        answer = asked or self.ask(call)
        if answer is not None:
            try:
                await answer.until_head()
            except EngineFailed:
                # A server may close a connection that it thinks idle while a call is on its way there. It has not seen
                # that one, so it may have it again. Who closes a new connection has seen it: that is its answer.
                if not self.usable or not answer.is_unseen:
                    raise
            else:
                return answer
        answer = (await self._new()).ask(call)
        await answer.until_head()
        return answer

    def is_still(self, endpoint: str, key: bytes) -> bool:
        """The shim was asked again: whether what it told is what is here; then this one is usable again."""
        self._doubted = (endpoint, key) != (self._endpoint, self._key)
        return self.usable

    def watch_ended(self, failure: str) -> None:
        self._doubted = True

    def engine_failed(self, message: str) -> None:
        self.close(failed(self._target, message))

    def close(self, message: str) -> None:
        if not self.broken:
            self.broken = message
            for connection in tuple(self._all):
                connection.end(self.broken)

    def _used_last(self) -> HttpConnection | None:
        """The others get their chance to grow old."""
        oldest = self._now() - IDLE_SECONDS
        while self._idle:
            connection = next(iter(self._idle))
            if connection.free_since >= oldest:
                return self._idle.popitem()[0]
            connection.end("")
        return None

    async def _new(self) -> HttpConnection:
        connection = await connect(
            lambda: HttpConnection(self._target, self._own, self._cork, self._freed, self._ended),
            self._endpoint,
            self._target,
        )
        if self.broken or connection.is_over:  # meanwhile
            connection.end("")
            raise EngineFailed(self.broken or failed(self._target, "it closed a new connection"))
        self._all.add(connection)
        return connection

    def _freed(self, connection: HttpConnection) -> None:
        if len(self._idle) >= MOST_IDLE:
            connection.end("")
        else:
            connection.free_since = self._now()
            self._idle[connection] = None

    def _ended(self, connection: HttpConnection) -> None:
        self._all.discard(connection)
        self._idle.pop(connection, None)
