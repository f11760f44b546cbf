"""What `deepinfer engine list` shows of this machine."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from deepinfer.engine_environments.environment import (
    Environment,
    clear_leftovers,
    environments,
    is_being_made,
    unfinished,
    unreadable,
)
from deepinfer.engine_environments.installed import own_engines
from deepinfer.fleet.resources import InstalledEngine
from deepinfer.fleet.sizes import size

COLUMNS = ("NAME", "ENGINE", "VERSION", "FOR", "STATE", "SIZE", "NOTE")


@dataclass(frozen=True)
class EngineRow:
    """One engine of this machine."""

    name: str
    engine: str
    version: str
    accelerator: str
    state: str  # ready, installing, broken
    size_bytes: int | None
    path: str | None
    note: str = ""
    removed: dict[str, str] = field(default_factory=dict)  # packages it does without, and what is missed

    def cells(self) -> list[str]:
        known = [self.name, self.engine, self.version, self.accelerator, self.state]
        return [*known, size(self.size_bytes), self.note]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def engine_rows(engines: Path) -> list[EngineRow]:
    """Everything there is; what killed installations left is removed on the way."""
    cleared = clear_leftovers(engines)
    rows = [_own(engine) for engine in own_engines()]
    rows += [row_of(environment) for environment in environments(engines)]
    rows += [_broken(folder) for folder in unreadable(engines)]
    rows += [_unfinished(folder) for folder in unfinished(engines) if is_being_made(engines, folder.name)]
    return [*rows, *map(_cleared, cleared)]


def row_of(environment: Environment) -> EngineRow:
    record = environment.record
    whole = environment.is_whole()
    without = f"without {', '.join(record.removed)}" if record.removed else ""
    again = f"its Python is gone: `deepinfer engine remove {environment.name}`, then install it again"
    return EngineRow(
        name=environment.name,
        engine=record.engine.kind,
        version=record.engine.version,
        accelerator=record.engine.accelerator,
        state="ready" if whole else "broken",
        size_bytes=record.size_bytes,
        path=str(environment.folder),
        note=without if whole else again,
        removed=record.removed,
    )


def _own(engine: InstalledEngine) -> EngineRow:
    known = (engine.kind, engine.version, engine.accelerator)
    return EngineRow(engine.kind, *known, "ready", None, None, "part of deepinfer")


def _broken(folder: Path) -> EngineRow:
    again = f"its record cannot be read: `deepinfer engine remove {folder.name}`, then install it again"
    return EngineRow(folder.name, "", "", "", "broken", None, str(folder), again)


def _cleared(name: str) -> EngineRow:
    return EngineRow(name, "", "", "", "removed", None, None, "a killed installation left it")


def _unfinished(folder: Path) -> EngineRow:
    return EngineRow(folder.name, "", "", "", "installing", None, str(folder))
