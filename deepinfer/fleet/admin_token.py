"""The way in for who administers a `serve` on its own machine: a secret in a file that its user alone can read.

It is another one each time `serve` starts, named for the port, and gone when it ends: the command line must not show a
secret that is still good to whatever came to listen there since. The first API key is made with it.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from deepinfer.fleet.durable_file import write_durably
from deepinfer.fleet.places import data_dir

log = logging.getLogger(__name__)

_MOST_BYTES = 256


def admin_token_file(port: int) -> Path:
    return data_dir() / "admin-tokens" / str(port)


@contextmanager
def offered(token: str, port: int) -> Iterator[None]:
    """In its file while the block runs. A disk that takes no file keeps no `serve` from serving."""
    path = admin_token_file(port)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_durably(path, token.encode())
        log.info("API keys are required; this user's `deepinfer` comes in here by the token in %s", path)
    except OSError as error:
        log.warning("No admin token could be written (%s): only keys that exist already open this server.", error)
    try:
        yield
    finally:
        if admin_token(port) == token:  # else it is a successor's already
            with suppress(OSError):
                path.unlink()


def admin_token(port: int) -> str | None:
    """That of the `serve` of this user at that port of this machine, if there is one."""
    try:
        descriptor = os.open(admin_token_file(port), os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        is_ours = stat.S_ISREG(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077
        return file.read(_MOST_BYTES).decode("ascii", "replace").strip() if is_ours else None
