"""A backup of the store in one file: whole, or not there at all. An older one of that name stays until then."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import IO

from deepinfer.fleet.store import EtcdStore

Told = Callable[[int, int], None]
"""Hears of each piece: bytes written, and bytes altogether."""


async def back_up(store: EtcdStore, file: Path, told: Told) -> int:
    """Write all that etcd holds; answers the size. Readable by the owner only: it has every deployment's secrets."""
    written = 0
    with _whole(file) as copy:
        async with aclosing(store.snapshot()) as pieces:
            async for piece in pieces:
                copy.write(piece.content)
                written += len(piece.content)
                told(written, written + piece.remaining)
    return written


@contextmanager
def _whole(path: Path) -> Iterator[IO[bytes]]:
    """It has its name once the block has ended well and all of it is on the disk."""
    descriptor, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(beside).replace(path)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise
