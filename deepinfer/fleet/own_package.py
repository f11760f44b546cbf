"""This package for a Python that has its own environment: a folder with nothing in it but a link to it.

Put on PYTHONPATH, it brings deepinfer and nothing else of the environment that deepinfer is installed in.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import deepinfer

_PACKAGE = Path(deepinfer.__file__).parent


def with_own_package(environment: Mapping[str, str], folder: Path) -> dict[str, str]:
    """`environment` with `folder`, which is made, first on PYTHONPATH; the user's own entries stay behind it."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    link = folder / "deepinfer"
    if not link.is_symlink() or link.resolve() != _PACKAGE.resolve():
        beside = folder / f".link-{os.getpid()}"
        with suppress(FileNotFoundError):
            beside.unlink()
        beside.symlink_to(_PACKAGE.resolve())
        beside.replace(link)
    path = os.pathsep.join([str(folder), *filter(None, [environment.get("PYTHONPATH")])])
    return {**environment, "PYTHONPATH": path}
