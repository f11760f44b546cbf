"""The whole fleet at one revision: what every decision is made from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, Protocol, TypeVar

from pydantic import ValidationError

from deepinfer.fleet import keys
from deepinfer.fleet.alias import Alias
from deepinfer.fleet.api_key import ApiKey
from deepinfer.fleet.conditions import Conditions
from deepinfer.fleet.pipeline import Layout
from deepinfer.fleet.reading import Reading
from deepinfer.fleet.resource import Resource
from deepinfer.fleet.resources import Absence, Deployment, Move, Node, NodeSettings, Placement, Refusal, ReplicaStatus
from deepinfer.fleet.rollout import Rollout

R = TypeVar("R", bound=Resource)


@dataclass(frozen=True)
class Snapshot:
    """Sorted by key, so that equal fleets are equal values."""

    deployments: tuple[Deployment, ...] = ()
    placements: tuple[Placement, ...] = ()
    nodes: tuple[Node, ...] = ()
    statuses: tuple[ReplicaStatus, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    node_settings: tuple[NodeSettings, ...] = ()
    rollouts: tuple[Rollout, ...] = ()
    conditions: tuple[Conditions, ...] = ()
    moves: tuple[Move, ...] = ()
    absences: tuple[Absence, ...] = ()
    layouts: tuple[Layout, ...] = ()
    aliases: tuple[Alias, ...] = ()
    api_keys: tuple[ApiKey, ...] = ()
    unreadable: Mapping[str, str] = field(default_factory=dict)
    """Key -> why. Nothing may be concluded from the absence of an object that is merely unreadable."""

    def but(self, **records: Any) -> Snapshot:
        """The same fleet with other records of some kinds; what was looked up in the statuses stays known."""
        other = dataclasses.replace(self, **records)
        if other.statuses is self.statuses:
            other.__dict__["_statuses"] = self._statuses
        return other

    def status_of(self, placement: Placement) -> ReplicaStatus | None:
        """The newest word on this very epoch."""
        return self._statuses.get((placement.id, placement.node, placement.epoch))

    @cached_property
    def _statuses(self) -> Mapping[tuple[str, str, int], ReplicaStatus]:
        """The first one by key, should a record lie under a wrong one too."""
        return {(status.id, status.node, status.epoch): status for status in reversed(self.statuses)}


def only_in(these: tuple[R, ...], those: tuple[R, ...]) -> tuple[R, ...]:
    """Records that are not among the others. By identity, for what was not touched is the very same object: comparing
    thousands of records takes a hundred times as long."""
    if these is those:
        return ()
    known = set(map(id, those))
    return tuple([record for record in these if id(record) not in known])


class Kind(NamedTuple):
    """Where records of one kind lie, and the snapshot's field that has them."""

    prefix: str
    field: str
    record: type[Resource]


KINDS = (
    Kind(keys.DEPLOYMENTS, "deployments", Deployment),
    Kind(keys.PLACEMENTS, "placements", Placement),
    Kind(keys.NODES, "nodes", Node),
    Kind(keys.STATUSES, "statuses", ReplicaStatus),
    Kind(keys.REFUSALS, "refusals", Refusal),
    Kind(keys.NODE_SETTINGS, "node_settings", NodeSettings),
    Kind(keys.ROLLOUTS, "rollouts", Rollout),
    Kind(keys.CONDITIONS, "conditions", Conditions),
    Kind(keys.ABSENCES, "absences", Absence),
    Kind(keys.API_KEYS, "api_keys", ApiKey),
    Kind(keys.MOVES, "moves", Move),
    Kind(keys.LAYOUTS, "layouts", Layout),
    Kind(keys.ALIASES, "aliases", Alias),
)


class Unreadable(str):
    """Why a record does not parse."""

    __slots__ = ()


def parsed(record: type[Resource], value: bytes) -> Resource | Unreadable:
    try:
        return record.model_validate_json(value)
    except ValidationError as error:
        return Unreadable("; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()))


def snapshot_of(entries: Mapping[str, bytes]) -> Snapshot:
    """Parse everything under /deepinfer/. A record that does not parse costs that record only."""
    unreadable: dict[str, str] = {}
    tables: dict[str, Any] = {}
    for kind in KINDS:
        records = {key: parsed(kind.record, entries[key]) for key in sorted(entries) if key.startswith(kind.prefix)}
        unreadable |= {key: record for key, record in records.items() if isinstance(record, Unreadable)}
        tables[kind.field] = tuple(record for record in records.values() if not isinstance(record, Unreadable))
    return Snapshot(**tables, unreadable=unreadable)


class View(NamedTuple):
    """The fleet, and the very reading it was made from: what a commit compares with."""

    reading: Reading
    fleet: Snapshot


class ViewedStore(Protocol):
    """Where a decision comes from and goes to: etcd itself, or a mirror of it."""

    async def view(self) -> View: ...

    async def commit(
        self,
        puts: Mapping[str, bytes | None],
        *,
        if_unchanged: Reading | None = None,
        also_unchanged: Mapping[str, int] = ...,
    ) -> int: ...
