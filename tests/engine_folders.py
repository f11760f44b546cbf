"""Folders that look to deepinfer like installed engines, made in a moment: for what never starts the engine."""

from __future__ import annotations

import sys
from pathlib import Path

from deepinfer.engine_environments.environment import FLAGS, MARKER, EnvironmentRecord, name_of
from deepinfer.engine_environments.flags import EngineFlags, Flag
from deepinfer.fleet.resources import InstalledEngine


def put_environment(engines: Path, engine: InstalledEngine) -> Path:
    """A folder as an installation leaves it, with our own Python in it."""
    folder = engines / name_of(engine)
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").symlink_to(sys.executable)
    flags = EngineFlags(
        engine=engine.kind, version=engine.version, flags=(Flag(options=("--max-num-seqs",), takes_value=True),)
    )
    (folder / FLAGS).write_bytes(flags.to_json())
    record = EnvironmentRecord(engine=engine, python="3.11", packages=1, size_bytes=1, made_at="2026-01-01T00:00:00Z")
    (folder / MARKER).write_bytes(record.to_json())
    return folder
