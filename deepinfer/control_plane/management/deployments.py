"""Deployments in the store: the only writer of their keys. Every write is a compare-and-set."""

from __future__ import annotations

import secrets
import string
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar

from pydantic import ValidationError

from deepinfer.control_plane.management.admission import amended
from deepinfer.control_plane.openai_errors import UnreadableDeployment
from deepinfer.fleet import keys
from deepinfer.fleet.errors import DeploymentExists, DeploymentNotFound, StoreConflict
from deepinfer.fleet.resources import Deployment, DeploymentSpec
from deepinfer.fleet.store import EtcdStore, Reading

TRIES = 5
T = TypeVar("T")


class Deployments:
    """What users want to run."""

    def __init__(self, store: EtcdStore) -> None:
        self._store = store

    async def create(self, name: str, spec: DeploymentSpec) -> None:
        """Raises `DeploymentExists`."""

        async def once() -> None:
            reading = await self._store.read(keys.deployment(name))
            if keys.deployment(name) in reading.entries:
                raise DeploymentExists(f"Deployment {name} exists already; PUT or PATCH it, or delete it first.")
            await self._write(_new(name, spec), reading)

        await _retrying(once)

    async def put(self, name: str, spec: DeploymentSpec) -> bool:
        """Make it so, whatever was there; the answer is whether it is new."""

        async def once() -> bool:
            reading = await self._store.read(keys.deployment(name))
            known = _known(name, reading)
            wanted = _changed(known, spec) if known else _new(name, spec)
            if wanted != known:
                await self._write(wanted, reading)
            return known is None

        return await _retrying(once)

    async def amend(self, name: str, changes: Mapping[str, Any]) -> None:
        """Replace some fields of its spec. Raises `DeploymentNotFound`."""

        async def once() -> None:
            reading = await self._store.read(keys.deployment(name))
            known = _existing(name, reading)
            wanted = _changed(known, amended(known.spec, changes, name))
            if wanted != known:
                await self._write(wanted, reading)

        await _retrying(once)

    async def delete(self, name: str) -> None:
        """Also one whose record cannot be read. Raises `DeploymentNotFound`."""

        async def once() -> None:
            reading = await self._store.read(keys.deployment(name))
            if keys.deployment(name) not in reading.entries:
                raise _not_found(name)
            await self._store.commit({keys.deployment(name): None}, if_unchanged=reading)

        await _retrying(once)

    async def _write(self, deployment: Deployment, reading: Reading) -> None:
        await self._store.commit({keys.deployment(deployment.name): deployment.to_json()}, if_unchanged=reading)


async def _retrying(once: Callable[[], Awaitable[T]]) -> T:
    """Look again when somebody wrote first; `StoreConflict` when that keeps happening."""
    for _ in range(TRIES - 1):
        try:
            return await once()
        except StoreConflict:
            continue
    return await once()


def _known(name: str, reading: Reading) -> Deployment | None:
    entry = reading.entries.get(keys.deployment(name))
    if entry is None:
        return None
    try:
        return Deployment.model_validate_json(entry.value)
    except ValidationError as error:
        raise UnreadableDeployment(f"The record of {name} cannot be read by this version; delete it first.") from error


def _existing(name: str, reading: Reading) -> Deployment:
    known = _known(name, reading)
    if known is None:
        raise _not_found(name)
    return known


def _not_found(name: str) -> DeploymentNotFound:
    return DeploymentNotFound(f"There is no deployment {name}; `deepinfer get deployments` lists them.")


def _new(name: str, spec: DeploymentSpec) -> Deployment:
    uid = "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(5))
    now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    return Deployment(name=name, uid=uid, generation=1, created_at=now, spec=spec)


def _changed(known: Deployment, spec: DeploymentSpec) -> Deployment:
    """A new generation, if anything is new."""
    if spec == known.spec:
        return known
    return known.model_copy(update={"spec": spec, "generation": known.generation + 1})
