"""Deployments in the store: the only writer of their keys. Every write is a compare-and-set.

Revisions are written and dropped in the transaction that writes their deployment, so its key guards theirs too.
"""

from __future__ import annotations

import secrets
import string
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from deepinfer.control_plane.management.admission import amended
from deepinfer.control_plane.management.history import History, cause_of, history_of
from deepinfer.control_plane.management.retrying import retrying
from deepinfer.control_plane.openai_errors import AliasExists
from deepinfer.fleet import keys
from deepinfer.fleet.errors import DeploymentExists, DeploymentNotFound
from deepinfer.fleet.mirror import Mirror
from deepinfer.fleet.resources import Deployment
from deepinfer.fleet.rollout import Revision
from deepinfer.fleet.spec import DeploymentSpec
from deepinfer.fleet.store import is_one_transaction
from deepinfer.fleet.told_time import told_time


@dataclass(frozen=True)
class Change:
    """One deployment before and after a write."""

    before: Deployment | None
    after: Deployment

    @property
    def is_one(self) -> bool:
        return self.before != self.after


Ask = Callable[[History], Change]
"""What a user wants to become of a deployment, given what there is."""
Records = dict[str, bytes | None]
Guards = dict[str, int]
"""Keys and the revisions at which they must still be."""


def creation(spec: DeploymentSpec) -> Ask:
    """Raises `DeploymentExists` and `AliasExists`."""

    def asked(history: History) -> Change:
        if history.record is not None:
            raise DeploymentExists(f"Deployment {history.name} exists already; PUT or PATCH it, or delete it first.")
        return Change(None, _new(history, spec))

    return asked


def loading(spec: DeploymentSpec) -> Ask:
    """Create it, where it is not there just so. Raises `DeploymentExists` and `AliasExists`."""

    def asked(history: History) -> Change:
        known = history.known
        if known is None:
            return Change(None, _new(history, spec))
        if known.spec != spec:
            told = cause_of(known, known.model_copy(update={"spec": spec})).removeprefix("changed ")
            raise DeploymentExists(
                f"{history.name} runs already, with another {told}; POST /api/models/hot-swap changes it, "
                "/api/models/unload ends it."
            )
        return Change(known, known)

    return asked


def replacement(spec: DeploymentSpec) -> Ask:
    """Make it so, whatever was there. Raises `AliasExists`."""

    def asked(history: History) -> Change:
        known = history.known
        return Change(known, _changed(known, spec) if known else _new(history, spec))

    return asked


def amendment(changes: Mapping[str, Any]) -> Ask:
    """Replace some fields of its spec. Raises `DeploymentNotFound`."""

    def asked(history: History) -> Change:
        known = history.existing
        return Change(known, _changed(known, amended(known.spec, changes, known.name)))

    return asked


def undoing(to: int | None) -> Ask:
    """An earlier revision again. Raises `DeploymentNotFound`, `RevisionNotFound` and `NothingToUndo`."""

    def asked(history: History) -> Change:
        known = history.existing
        return Change(known, _changed(known, history.undone(to)))

    return asked


class Deployments:
    """What users want to run."""

    def __init__(self, store: Mirror) -> None:
        self._store = store

    async def change(self, name: str, ask: Ask) -> Change:
        """Written, if it is one."""
        (change,) = await self.change_all({name: ask})
        return change

    async def change_all(self, asks: Mapping[str, Ask]) -> tuple[Change, ...]:
        """By name. Written together, as far as etcd takes so much at once; not at all if one of them is refused."""

        async def once() -> tuple[Change, ...]:
            known = [await self._read(name) for name in asks]
            changes = tuple(ask(history) for ask, (history, _) in zip(asks.values(), known, strict=True))
            writes = [
                (_records(change, history), guard)
                for change, (history, guard) in zip(changes, known, strict=True)
                if change.is_one
            ]
            for records, guards in _together(writes):
                await self._store.commit(records, also_unchanged=guards)
            return changes

        return await retrying(once)

    async def would_be(self, asks: Mapping[str, Ask]) -> tuple[Change, ...]:
        """As far as is known; nothing is written."""
        await self._store.latest()
        entries = self._store.reading.values
        return tuple(ask(history_of(name, entries)) for name, ask in asks.items())

    async def history(self, name: str) -> History:
        """As far as is known."""
        await self._store.latest()
        return history_of(name, self._store.reading.values)

    async def delete(self, name: str) -> None:
        """Also one whose record cannot be read. Raises `DeploymentNotFound`."""

        async def once() -> None:
            history, guard = await self._read(name)
            if history.record is None:
                raise DeploymentNotFound(f"There is no deployment {name}; `deepinfer get deployments` lists them.")
            revisions = (*history.kept, *history.stray)
            await self._store.commit(dict.fromkeys([keys.deployment(name), *revisions]), also_unchanged=guard)

        await retrying(once)

    async def _read(self, name: str) -> tuple[History, Guards]:
        """And the revisions of its own key, and of the alias it must not become: they guard all the rest."""
        own, alias = keys.deployment(name), keys.alias(name)
        reading = await self._store.read(own, alias, keys.revisions(name), keys.rollout(name))
        guards = (own,) if own in reading.entries else (own, alias)
        return history_of(name, reading.values), {key: reading.mod_revision(key) for key in guards}


def _records(change: Change, history: History) -> Records:
    """The deployment with its revision; also that of the generation before, if an older version wrote none."""
    after, before = change.after, change.before
    added = {}
    if before is not None and keys.revision(before.name, before.generation) not in history.kept:
        added[keys.revision(before.name, before.generation)] = _revision(before, before.created_at, "")
    added[keys.revision(after.name, after.generation)] = _revision(after, told_time(), cause_of(before, after))
    return {
        keys.deployment(after.name): after.to_json(),
        **dict.fromkeys(history.outgrown(len(added))),
        **{key: revision.to_json() for key, revision in added.items()},
    }


def _together(writes: Iterable[tuple[Records, Guards]]) -> Iterator[tuple[Records, Guards]]:
    """As many in one as a transaction takes, in their order."""
    records: Records = {}
    guards: Guards = {}
    for more, also in writes:
        if records and not is_one_transaction({**records, **more}):
            yield records, guards
            records, guards = {}, {}
        records, guards = {**records, **more}, {**guards, **also}
    if records:
        yield records, guards


def _revision(deployment: Deployment, created_at: str, cause: str) -> Revision:
    return Revision(
        deployment=deployment.name,
        uid=deployment.uid,
        generation=deployment.generation,
        created_at=created_at,
        cause=cause,
        spec=deployment.spec,
    )


def _new(history: History, spec: DeploymentSpec) -> Deployment:
    """Raises `AliasExists`."""
    name = history.name
    if history.is_alias:
        raise AliasExists(f"{name} is an alias; choose another name, or free it with `deepinfer alias remove {name}`.")
    uid = "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(5))
    return Deployment(name=name, uid=uid, generation=1, created_at=told_time(), spec=spec)


def _changed(known: Deployment, spec: DeploymentSpec) -> Deployment:
    """A new generation, if anything is new."""
    if spec == known.spec:
        return known
    return known.model_copy(update={"spec": spec, "generation": known.generation + 1})
