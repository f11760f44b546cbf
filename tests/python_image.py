"""An image that stands for python:3.12-slim, as there is no registry to pull from: this machine's Python, and a shell.

pip in it reaches what pip reaches here: the same settings, the same certificates.
"""

from __future__ import annotations

import os
import re
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from shutil import which
from typing import Final

from tests.docker_engine import DockerEngine
from tests.root_tar import PYTHON, RootTar, streamed

NAME: Final = "python-of-this-machine:1"
_PATH: Final = "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PROGRAMS: Final = ("grep", "install", "mkdir", "touch", "useradd")  # what Dockerfile runs; a shell is there
_ACCOUNTS: Final = ("/etc/group", "/etc/login.defs")
_PIP_FILES: Final = ("/etc/pip.conf", "~/.config/pip/pip.conf", "~/.pip/pip.conf")
_DEBIANS_PIP: Final = Path("/usr/share/python-wheels")  # where its ensurepip has it
_FOR_WHEELS: Final = ("libdl.so.2", "libgcc_s.so.1", "libpthread.so.0", "librt.so.1", "libstdc++.so.6", "libutil.so.1")
"""What a wheel for any Linux finds on any Linux, besides what Python itself loads."""


def python_image(engine: DockerEngine) -> str:
    """Its name. It is made once for an engine."""
    if not engine.docker.images.list(NAME):
        changes = [f'ENV {name}="{value}"' for name, value in {"PATH": _PATH, **_pip_variables()}.items()]
        engine.docker.api.import_image(src=streamed(_fill), repository=NAME, changes=changes)
    return NAME


def _fill(root: RootTar) -> None:
    for folder in reversed(PYTHON.parents[:-1]):
        root.add_folder(folder, mode=0o755)  # for every user, also where this machine's is not
    root.add_python()
    root.add_text(Path("/usr/local/bin/python"), f'#!/bin/sh\nexec {PYTHON} "$@"\n')
    root.add_tree(Path(sysconfig.get_path("stdlib"), "ensurepip"))
    root.add_tree(_DEBIANS_PIP)
    for path in (*map(_program, _PROGRAMS), *_libraries(), *_files()):
        root.add(path.parent.resolve() / path.name)


def _program(name: str) -> Path:
    found = which(name, path=_PATH)
    assert found, f"there is no program {name} on this machine"
    return Path(found)


def _libraries() -> Iterator[Path]:
    known = subprocess.run(["ldconfig", "-p"], capture_output=True, text=True, check=True).stdout
    for name in _FOR_WHEELS:
        found = re.search(rf"^\t{re.escape(name)} .* => (/\S+)$", known, re.MULTILINE)
        assert found, f"there is no library {name} on this machine"
        yield Path(found[1])


def _files() -> Iterator[Path]:
    named = (*_ACCOUNTS, *_PIP_FILES, os.environ.get("PIP_CERT", ""))
    yield from (path for path in (Path(name).expanduser() for name in named) if path.is_file())


def _pip_variables() -> dict[str, str]:
    wanted = re.compile(r"PIP_.*|(https?|no)_proxy", re.IGNORECASE)
    return {name: value for name, value in os.environ.items() if wanted.fullmatch(name)}
