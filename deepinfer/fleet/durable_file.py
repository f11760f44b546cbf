"""Files that are whole or not there at all, even when the machine dies while they are written."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO


def write_durably(path: Path, content: bytes) -> None:
    """Write beside `path`, push to the disk, rename. Readable by the owner only. An OSError names `path`.

    What stands there already is not written again: then a full disk does no harm.
    """
    with suppress(OSError):
        if path.read_bytes() == content:
            return
    try:
        with whole_file(path) as file:
            file.write(content)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """It has its name once the block has ended well and all of it is on the disk. Readable by the owner only."""
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
