"""One authenticated connection between two processes of a pipeline: frames out, frames in.

Anyone may send; one thread receives. Rows are received into one of two buffers that are used over and over, so that the
next ones arrive while the last ones are computed.
"""

from __future__ import annotations

import queue
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
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


class Buffers:
    """Two pieces of memory for rows that arrive."""

    def __init__(self) -> None:
        self._free: queue.SimpleQueue[Tensor] = queue.SimpleQueue()
        for _ in range(2):
            self._free.put(torch.empty(0, dtype=torch.uint8))

    def take(self, size: int) -> Tensor:
        """At least `size` bytes, as soon as one of the two is free."""
        memory = self._free.get()
        return memory if memory.numel() >= size else torch.empty(size, dtype=torch.uint8)

    def give_back(self, memory: Tensor) -> None:
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
        self._closed = False

    def patience(self, seconds: float) -> None:
        """How long `receive` waits for a byte before it raises `TimeoutError`. Sending is another matter."""
        whole, part = divmod(seconds, 1)
        limit = struct.pack("@ll", int(whole), int(part * 1e6))
        self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)

    def send(self, header: Header, message: bytes, rows: Tensor | None = None) -> None:
        """Raises `OSError` when the other side is gone."""
        pieces: list[bytes | memoryview] = [header.packed(), message]
        if rows is not None:
            pieces.append(_bytes_of(rows.contiguous().cpu().flatten().view(torch.uint8)))
        with self._sending:
            _send_all(self._connection, pieces)

    def receive(self, limits: FrameLimits) -> Frame:
        """The next frame. Raises `FrameRefused`, or `OSError` when the other side is gone."""
        first = bytearray(HEADER_BYTES)
        self._fill(memoryview(first))
        header = parsed(first, limits)
        message = bytearray(header.message_bytes)
        self._fill(memoryview(message))
        if not header.rows or header.dtype is None:
            return Frame(header, bytes(message), None, _nothing)
        memory = self._buffers.take(header.payload_bytes)
        here = memory[: header.payload_bytes]
        self._fill(_bytes_of(here))
        rows = here.view(header.dtype).view(header.rows, header.width)
        return Frame(header, bytes(message), rows, lambda: self._buffers.give_back(memory))

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

    def _fill(self, memory: memoryview) -> None:
        filled = 0
        while filled < len(memory):
            try:
                count = self._connection.recv_into(memory[filled:])
            except BlockingIOError:
                raise TimeoutError("is silent") from None
            if not count:
                raise ConnectionResetError("hung up")
            filled += count


def _send_all(connection: socket.socket, pieces: list[bytes | memoryview]) -> None:
    sizes = [len(piece) for piece in pieces]
    sent = connection.sendmsg(pieces)
    for piece, size in zip(pieces, sizes, strict=True):
        if sent < size:
            connection.sendall(memoryview(piece)[sent:])
        sent = max(0, sent - size)


def _bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a tensor of bytes itself."""
    return memoryview(tensor.numpy())  # type: ignore[arg-type]


def _nothing() -> None:
    pass
