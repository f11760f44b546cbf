"""Which fleet a store holds: told by one key, so that a wiped or exchanged store is not taken for an empty fleet.

`serve` and the agents remember the id they know. What does not follow from it is not acted upon until a person says, by
`deepinfer fleet confirm`, that it is right; until then engines run on and requests are routed as before.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable

from pydantic import Field, ValidationError

from deepinfer.fleet import keys
from deepinfer.fleet.errors import AnotherFleet, StoreConflict
from deepinfer.fleet.reading import Reading
from deepinfer.fleet.resource import Record
from deepinfer.fleet.store import EtcdStore

SCHEMA = 1
"""Of the records in the store; grows when older versions could no longer work beside newer ones."""
CONFIRM = "if this store is the right one, say so with `deepinfer fleet confirm`"


class FleetIdentity(Record):
    """The store's own record of whose it is."""

    id: str
    schema_: int = Field(alias="schema", ge=1)
    succeeds: tuple[str, ...] = ()  # fleets whose nodes a person has handed over to this one

    def to_json(self) -> bytes:
        return self.model_dump_json(by_alias=True).encode()


class SchemaTooNew(AnotherFleet):
    """The store was written by a newer version of deepinfer; upgrade this one."""


def told_identity(value: bytes | None) -> FleetIdentity | None:
    """None where there is none. Raises `SchemaTooNew`, also for what cannot be read at all."""
    if value is None:
        return None
    try:
        found = FleetIdentity.model_validate_json(value)
    except ValidationError as error:
        raise SchemaTooNew(
            f"The record {keys.IDENTITY} in etcd cannot be read by this version; upgrade this deepinfer, or repair it."
        ) from error
    if found.schema_ > SCHEMA:
        raise SchemaTooNew(
            f"The store has schema {found.schema_}, and this version of deepinfer knows up to {SCHEMA}; "
            "upgrade this deepinfer."
        )
    return found


def doubt_about(value: bytes | None, known: str) -> str:
    """Why this store must not be taken for that of the fleet `known` ("": any will do); empty when it may."""
    try:
        found = told_identity(value)
    except SchemaTooNew as error:
        return str(error)
    if not known or (found is not None and known in (found.id, *found.succeeds)):
        return ""
    if found is None:
        return f"The store was wiped or exchanged: it says nothing of fleet {known}; {CONFIRM}."
    return f"The store holds fleet {found.id}, which does not succeed fleet {known}; {CONFIRM}."


async def founded(store: EtcdStore) -> FleetIdentity:
    """The store's fleet; a new one where there is none yet. Raises `SchemaTooNew`."""
    while True:
        reading = await store.read(keys.IDENTITY)
        found = told_identity(reading.values.get(keys.IDENTITY))
        if found is not None:
            return found
        await _written(store, _new(), reading)


async def confirmed(store: EtcdStore, predecessors: Iterable[str]) -> FleetIdentity:
    """Make the store's fleet the successor of these, and the fleet itself where there is none."""
    while True:
        reading = await store.read(keys.IDENTITY)
        found = told_identity(reading.values.get(keys.IDENTITY)) or _new()
        added = sorted(set(predecessors) - {found.id, "", *found.succeeds})
        wanted = found.model_copy(update={"succeeds": (*found.succeeds, *added)})
        if not added and keys.IDENTITY in reading.entries:
            return found
        if await _written(store, wanted, reading):
            return wanted


def _new() -> FleetIdentity:
    return FleetIdentity(id=secrets.token_hex(8), schema=SCHEMA)


async def _written(store: EtcdStore, identity: FleetIdentity, reading: Reading) -> bool:
    """False if somebody else wrote first."""
    try:
        await store.commit({keys.IDENTITY: identity.to_json()}, if_unchanged=reading)
    except StoreConflict:
        return False
    return True
