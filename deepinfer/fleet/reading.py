"""What was read of the store: keys and values at one revision, and what changed after it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Entry:
    value: bytes
    mod_revision: int


@dataclass(frozen=True, slots=True)
class Reading:
    """Everything under `prefixes` as it was at `revision`."""

    revision: int
    entries: Mapping[str, Entry]
    prefixes: tuple[str, ...] = ("",)

    @property
    def values(self) -> dict[str, bytes]:
        return {key: entry.value for key, entry in self.entries.items()}

    def mod_revision(self, key: str) -> int:
        """0 for a key that was absent."""
        if not key.startswith(self.prefixes):
            raise ValueError(f"{key!r} is not part of a reading of {', '.join(self.prefixes)}")
        entry = self.entries.get(key)
        return entry.mod_revision if entry else 0


@dataclass(frozen=True, slots=True)
class Changes:
    """What became of keys up to `revision`; None: it was deleted."""

    entries: Mapping[str, Entry | None]
    revision: int
