"""One authenticated connection between two processes of a pipeline: frames out, frames in.

Anyone may send; one thread receives. Rows are received into one of two buffers that are used over and over, so that the
next ones arrive while the last ones are computed.

A hop's code runs with cold caches, as the weights have just gone through them, and is then some five times slower: what
counts is how much of it there is. So a small frame is received by one call, and no operation of torch is on the way.
"""

from __future__ import annotations

import ctypes
import queue
import socket
import struct
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import torch
from torch import Tensor

from deepinfer.engine_shim.engines.layer_shard.pipeline.frames import (
    HEADER_BYTES,
    FrameLimits,
    Header,
    parsed,
)
from deepinfer.engine_shim.engines.layer_shard.pipeline.handshake import Role, Secret, ask_in

CONNECT_SECONDS: Final = 3.0
_AHEAD: Final = 1 << 16  # bytes
_FEW_ROWS: Final = 64  # a step that only decodes has no more
UNACKNOWLEDGED_SECONDS: Final = 2.0
"""After so long without the other machine's word on what was sent, the connection is lost."""


def connected(endpoint: str, secret: Secret, stage: str, role: Role) -> Link:
    """A link to a stage. Raises `OSError` (`NotAuthenticated` is one) in words that follow its name."""
    host, _, port = endpoint.rpartition(":")
    connection = socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS)
    try:
        ask_in(connection, secret, stage, role)
    except BaseException:
        connection.close()
        raise
    return Link(connection)


class Rows:
    """A piece of memory for rows that arrive."""

    def __init__(self, size: int) -> None:
        self._memory = torch.empty(size, dtype=torch.uint8)
        self.bytes = memoryview(self._memory.numpy())  # type: ignore[arg-type]
        self._seen: dict[int, Tensor] = {}

    def seen_as(self, header: Header) -> Tensor:
        """All headers of a link have the same width and dtype."""
        rows = self._seen.get(header.rows)
        if rows is None:
            dtype = header.dtype or torch.uint8
            rows = self._memory[: header.payload_bytes].view(dtype).view(header.rows, header.width)
            if header.rows <= _FEW_ROWS:
                self._seen[header.rows] = rows
        return rows


class Buffers:
    """Two pieces of memory for rows that arrive."""

    def __init__(self) -> None:
        self._free: queue.SimpleQueue[Rows] = queue.SimpleQueue()
        for _ in range(2):
            self._free.put(Rows(0))

    def take(self, size: int) -> Rows:
        """At least `size` bytes, as soon as one of the two is free."""
        memory = self._free.get()
        return memory if len(memory.bytes) >= size else Rows(size)

    def give_back(self, memory: Rows) -> None:
        self._free.put(memory)


@dataclass(frozen=True, slots=True)
class Frame:
    """A received frame. `done` must be called once its rows are not needed any more."""

    header: Header
    message: bytes
    rows: Tensor | None
    done: Callable[[], None]


class Link:
    """A connection whose peer has proved who it is."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(UNACKNOWLEDGED_SECONDS * 1000))
        self._connection = connection
        self._sending = threading.Lock()
        self._buffers = Buffers()
        self._ahead = memoryview(bytearray(_AHEAD))  # what was received beyond what was asked for
        self._start = self._stop = 0
        self._closed = False

    def patience(self, seconds: float) -> None:
        """How long `receive` waits for a byte before it raises `TimeoutError`. Sending is another matter."""
        whole, part = divmod(seconds, 1)
        limit = struct.pack("@ll", int(whole), int(part * 1e6))
        self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)

    def send(self, header: Header, message: bytes, rows: Tensor | None = None) -> None:
        """Raises `OSError` when the other side is gone."""
        pieces: list[bytes | ctypes.Array[ctypes.c_char]] = [header.packed(), message]
        if rows is not None:
            rows = rows if rows.is_cpu and rows.is_contiguous() else rows.contiguous().cpu()
            pieces.append(_bytes_type(rows.nbytes).from_address(rows.data_ptr()))
        with self._sending:
            _send_all(self._connection, pieces)

    def receive(self, limits: FrameLimits) -> Frame:
        """The next frame. Raises `FrameRefused`, or `OSError` when the other side is gone."""
        header = parsed(self._bytes(HEADER_BYTES), limits)
        message = self._bytes(header.message_bytes)
        if not header.rows or header.dtype is None:
            return Frame(header, message, None, _nothing)
        memory = self._buffers.take(header.payload_bytes)
        self._fill(memory.bytes[: header.payload_bytes])
        return Frame(header, message, memory.seen_as(header), lambda: self._buffers.give_back(memory))

    @property
    def closed(self) -> bool:
        """By this side."""
        return self._closed

    def close(self) -> None:
        """Wakes whoever receives."""
        self._closed = True
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()

    def _bytes(self, count: int) -> bytes:
        if self._stop - self._start < count:
            memory = bytearray(count)
            self._fill(memoryview(memory))
            return bytes(memory)
        self._start += count
        return bytes(self._ahead[self._start - count : self._start])

    def _fill(self, memory: memoryview) -> None:
        filled = 0
        while filled < len(memory):
            missing = len(memory) - filled
            if self._start == self._stop and missing >= _AHEAD:
                filled += self._received_into(memory[filled:])
                continue
            if self._start == self._stop:
                self._start, self._stop = 0, self._received_into(self._ahead)
            count = min(missing, self._stop - self._start)
            memory[filled : filled + count] = self._ahead[self._start : self._start + count]
            self._start, filled = self._start + count, filled + count

    def _received_into(self, memory: memoryview) -> int:
        try:
            count = self._connection.recv_into(memory)
        except BlockingIOError:
            raise TimeoutError("is silent") from None
        if not count:
            raise ConnectionResetError("hung up")
        return count


def _send_all(connection: socket.socket, pieces: Sequence[bytes | ctypes.Array[ctypes.c_char]]) -> None:
    sizes = [len(piece) for piece in pieces]
    sent = connection.sendmsg(pieces)
    for piece, size in zip(pieces, sizes, strict=True):
        if sent < size:
            connection.sendall(memoryview(piece)[sent:])
        sent = max(0, sent - size)


@lru_cache(_FEW_ROWS)
def _bytes_type(count: int) -> type[ctypes.Array[ctypes.c_char]]:
    return ctypes.c_char * count


def _nothing() -> None:
    pass
