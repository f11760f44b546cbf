"""etcd's own copy of everything it holds, as a stream whose end proves that it is whole.

The last 32 bytes are a digest of all before them; they belong to the file, and who restores it checks them again.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

from grpc import aio

from deepinfer.etcd.endpoints import END_OF_STREAM, Connection
from deepinfer.etcd.errors import Unavailable, failure_of

SILENCE_SECONDS = 30.0  # a large database takes its time before the first piece


@dataclass(frozen=True, slots=True)
class Piece:
    content: bytes
    remaining: int  # bytes still to come, as far as etcd knows


@dataclass(slots=True)
class _Whole:
    """Follows the pieces, and knows at the end whether they are all there."""

    _digest: hashlib._Hash = field(default_factory=hashlib.sha256)
    _tail: bytes = b""

    def add(self, content: bytes) -> None:
        tail = self._tail + content
        size = self._digest.digest_size
        self._digest.update(tail[:-size])
        self._tail = tail[-size:]

    @property
    def is_told(self) -> bool:
        return self._tail == self._digest.digest()


async def snapshot(connection: Connection) -> AsyncGenerator[Piece, None]:
    """Raises `Unavailable` where it breaks off; what came until then is worth nothing."""
    whole = _Whole()
    stream = await connection.snapshot(SILENCE_SECONDS)
    try:
        while True:
            async with asyncio.timeout(SILENCE_SECONDS):
                response = await stream.read()
            if response is END_OF_STREAM:
                break
            whole.add(response.blob)
            yield Piece(response.blob, response.remaining_bytes)
    except TimeoutError as error:
        raise Unavailable(f"{connection.endpoint}: nothing more came for {SILENCE_SECONDS:.0f} s") from error
    except aio.AioRpcError as error:
        raise failure_of(error, connection.endpoint, repeatable=True) from error
    finally:
        stream.cancel()
    if not whole.is_told:
        raise Unavailable(f"{connection.endpoint}: the snapshot broke off before its end")
