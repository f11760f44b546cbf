"""Peers' own Python environments: made when first needed, kept in a cache."""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

from benchmarks.fleet.until import say
from benchmarks.gateway.running import CannotRun

_STAMP = "installed"


def environment(folder: Path, *steps: Sequence[str]) -> Path:
    """Its `bin`, with what `pip install` of each step brings. Raises `CannotRun`."""
    stamp, wanted = folder / _STAMP, repr(steps)
    if not stamp.exists() or stamp.read_text() != wanted:
        say(f"installing {' '.join(steps[0])} into {folder}")
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, with_pip=True)
        for step in steps:
            _install(folder, step)
        stamp.write_text(wanted)
    return folder / "bin"


def version(programs: Path, package: str) -> str:
    asked = f"from importlib.metadata import version; print(version({package!r}))"
    told = subprocess.run([programs / "python", "-c", asked], capture_output=True, text=True, check=False)
    return told.stdout.strip()


def _install(folder: Path, step: Sequence[str]) -> None:
    pip = [str(folder / "bin/python"), "-m", "pip", "install", "--disable-pip-version-check", "--progress-bar", "on"]
    if subprocess.run([*pip, *step], stdout=sys.stderr, check=False).returncode:
        raise CannotRun(f"pip could not install {' '.join(step)}")
