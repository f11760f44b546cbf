"""The engine and the load, in C so that neither costs what is to be measured; compiled when a run begins."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from benchmarks.fleet.until import RunEnded

_SOURCES = Path(__file__).parent


@dataclass(frozen=True)
class Programs:
    """Ready to be run."""

    engine: Path
    load: Path


def compiled(folder: Path) -> Programs:
    """Raises `RunEnded` where there is no C compiler."""
    compiler = shutil.which(os.environ.get("CC") or "cc")
    if compiler is None:
        raise RunEnded("There is no C compiler (cc) for the bench's engine and load; install one, such as gcc.")
    return Programs(_compiled(compiler, "engine", folder), _compiled(compiler, "load", folder))


def _compiled(compiler: str, name: str, folder: Path) -> Path:
    program = folder / name
    told = subprocess.run(
        [compiler, "-O2", "-o", program, _SOURCES / f"{name}.c"], capture_output=True, text=True, check=False
    )
    if told.returncode:
        raise RunEnded(f"{compiler} cannot compile {name}.c (Linux is needed): {told.stderr.strip()[-500:]}")
    return program
