"""The unix sockets of one native engine: beside its shim's, under the same name, so that none outlives the engine.

What is killed removes nothing. By itself vLLM would put them into /tmp under names that tell nobody whose they are.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

_LONGEST = 103  # of a socket's path, what every Unix takes
_NAME = 1 + 36  # a slash, and the UUID that vLLM calls each one


def ipc_folder(shim: Path) -> Path | None:
    """Of the sockets by which an engine's processes talk to each other; None where its path would be too long."""
    folder = shim.with_suffix(".ipc")
    return folder if len(os.fsencode(folder)) + _NAME <= _LONGEST else None


def sockets_of(shim: Path) -> tuple[Path, ...]:
    """The shim's own, and the folders of others: it puts those of KV events there itself."""
    return (shim, shim.with_suffix(".ipc"), shim.with_suffix(".kv"))


def remove(sockets: Sequence[Path]) -> None:
    """Nobody may use them any more."""
    for path in sockets:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
