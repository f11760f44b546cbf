"""All of /deepinfer/ as it was at one revision, each record parsed once. Pure: it is given readings and changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deepinfer.fleet import keys
from deepinfer.fleet.reading import Changes, Entry, Reading
from deepinfer.fleet.resource import Resource
from deepinfer.fleet.snapshot import KINDS, Kind, Snapshot, Unreadable, parsed


class Cache:
    """Changes are applied in place; `fleet` and `reading` are values of their own and stay as they are."""

    def __init__(
        self, entries: Mapping[str, Entry] | None = None, revision: int = 0, known: Cache | None = None
    ) -> None:
        """What `known` has parsed already is taken over where it still holds."""
        self.revision = revision
        self._entries: dict[str, Entry] = {}
        self._tables = {kind.prefix: _Table(kind) for kind in KINDS}
        self._reading: Reading | None = None
        self._fleet: Snapshot | None = None
        for key, entry in (entries or {}).items():
            self._put(key, entry, known)

    def after(self, changes: Changes) -> Cache:
        """A second one with the changes, for when it is not certain that they are wanted."""
        changed = Cache(self._entries, self.revision, self)
        changed.apply(changes)
        return changed

    def apply(self, changes: Changes) -> None:
        """What is older than this cache is known already."""
        if changes.revision <= self.revision:
            return
        self._reading = None
        for key, entry in changes.entries.items():
            if entry is None:
                self._drop(key)
            else:
                self._put(key, entry, self)
        self.revision = changes.revision

    @property
    def reading(self) -> Reading:
        if self._reading is None or self._reading.revision != self.revision:
            self._reading = Reading(self.revision, dict(self._entries), (keys.FLEET,))
        return self._reading

    @property
    def fleet(self) -> Snapshot:
        """The same value as long as nothing in it changed."""
        if self._fleet is None:
            fields: dict[str, Any] = {table.kind.field: table.values for table in self._tables.values()}
            unreadable = {key: why for table in self._tables.values() for key, why in table.unreadable.items()}
            self._fleet = Snapshot(**fields, unreadable=unreadable)
        return self._fleet

    def value(self, key: str) -> bytes | None:
        entry = self._entries.get(key)
        return entry.value if entry else None

    def mod_revision(self, key: str) -> int:
        """0 for a key that is absent."""
        entry = self._entries.get(key)
        return entry.mod_revision if entry else 0

    def _put(self, key: str, entry: Entry, known: Cache | None) -> None:
        table = self._table_of(key)
        if table is not None:
            record = known._record(key, entry.value) if known else None
            if record is None or known is not self:
                table.put(key, parsed(table.kind.record, entry.value) if record is None else record)
                self._fleet = None
        self._entries[key] = entry

    def _drop(self, key: str) -> None:
        table = self._table_of(key)
        if self._entries.pop(key, None) is not None and table is not None:
            table.drop(key)
            self._fleet = None

    def _record(self, key: str, value: bytes) -> Resource | Unreadable | None:
        """As it was parsed from this very value."""
        entry, table = self._entries.get(key), self._table_of(key)
        return table.records.get(key) if table and entry and entry.value == value else None

    def _table_of(self, key: str) -> _Table | None:
        head, slash, _ = key.removeprefix(keys.FLEET).partition("/")
        return self._tables.get(f"{keys.FLEET}{head}{slash}")


class _Table:
    """The records of one kind."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.records: dict[str, Resource | Unreadable] = {}
        self._order: list[str] | None = None  # of the keys; None after one came or went
        self._values: tuple[Resource, ...] | None = None

    def put(self, key: str, record: Resource | Unreadable) -> None:
        if key not in self.records:
            self._order = None
        self.records[key] = record
        self._values = None

    def drop(self, key: str) -> None:
        del self.records[key]
        self._order = self._values = None

    @property
    def values(self) -> tuple[Resource, ...]:
        """Those that can be read, by key."""
        if self._values is None:
            self._order = self._order or sorted(self.records)
            records = self.records
            self._values = tuple(r for key in self._order if not isinstance(r := records[key], Unreadable))
        return self._values

    @property
    def unreadable(self) -> dict[str, str]:
        if len(self.values) == len(self.records):
            return {}
        return {key: record for key, record in self.records.items() if isinstance(record, Unreadable)}
