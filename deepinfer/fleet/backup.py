"""A backup of the store in one file: whole, or not there at all. An older one of that name stays until then."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path

from deepinfer.fleet.durable_file import whole_file
from deepinfer.fleet.store import EtcdStore

Told = Callable[[int, int], None]
"""Hears of each piece: bytes written, and bytes altogether."""


async def back_up(store: EtcdStore, file: Path, told: Told) -> int:
    """Write all that etcd holds; answers the size. Readable by the owner only: it has every deployment's secrets."""
    written = 0
    with whole_file(file) as copy:
        async with aclosing(store.snapshot()) as pieces:
            async for piece in pieces:
                copy.write(piece.content)
                written += len(piece.content)
                told(written, written + piece.remaining)
    return written
