"""API keys in the store: the only writer of their keys. A secret is in the answer that tells it, and nowhere else."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import ValidationError

from deepinfer.control_plane.management.key_requests import NewKey, limits_of
from deepinfer.control_plane.management.retrying import retrying
from deepinfer.control_plane.openai_errors import ApiKeyExists, ApiKeyNotFound
from deepinfer.fleet import keys
from deepinfer.fleet.api_key import ApiKey, digest_of
from deepinfer.fleet.errors import InvalidRequest
from deepinfer.fleet.mirror import Mirror
from deepinfer.fleet.told_time import told_time

log = logging.getLogger(__name__)


class ApiKeys:
    """The keys of this fleet."""

    def __init__(self, store: Mirror) -> None:
        self._store = store

    async def all(self) -> tuple[ApiKey, ...]:
        """By name; as last known while the store is away."""
        return tuple(sorted((await self._store.latest()).api_keys, key=lambda key: (key.name, key.id)))

    async def one(self, key_id: str) -> ApiKey:
        """Raises `ApiKeyNotFound`."""
        return _named(key_id, await self.all())

    async def add(self, wanted: NewKey, secret: str) -> ApiKey:
        """Raises `ApiKeyExists`. Of two that ask for one name at the same moment both may get it."""
        if any(key.name == wanted.name for key in await self.all()):
            raise ApiKeyExists(f"An API key {wanted.name} exists already; revoke it first, or take another name.")
        key = _new(wanted, secret)
        reading = await self._store.read(keys.api_key(key.id))
        await self._store.commit({keys.api_key(key.id): key.to_json()}, if_unchanged=reading)
        log.info("API key %s (%s, %s) was created", key.name, key.id, key.role)
        return key

    async def change(self, key_id: str, fields: Mapping[str, Any]) -> ApiKey:
        """Raises `ApiKeyNotFound`, and `InvalidRequest` for a key that this version cannot read."""

        async def once() -> ApiKey:
            reading = await self._store.read(keys.api_key(key_id))
            before = reading.values.get(keys.api_key(key_id))
            if before is None:
                raise _no_key(key_id)
            after = _read(key_id, before).model_copy(update=dict(fields))
            await self._store.commit({keys.api_key(key_id): after.to_json()}, if_unchanged=reading)
            return after

        return await retrying(once)

    async def revoke(self, key_id: str) -> None:
        """Also one whose record cannot be read. Raises `ApiKeyNotFound`."""

        async def once() -> None:
            reading = await self._store.read(keys.api_key(key_id))
            if keys.api_key(key_id) not in reading.values:
                raise _no_key(key_id)
            await self._store.commit({keys.api_key(key_id): None}, if_unchanged=reading)

        await retrying(once)
        log.info("API key %s was revoked", key_id)


def _new(wanted: NewKey, secret: str) -> ApiKey:
    now = datetime.now(UTC)
    seconds = wanted.expires_in_seconds
    return ApiKey(
        id=secrets.token_hex(6),
        name=wanted.name,
        sha256=digest_of(secret),
        role=wanted.role,
        models=wanted.models,
        limits=limits_of(wanted),
        priority=wanted.priority,
        created_at=told_time(now),
        expires_at=None if seconds is None else told_time(now + timedelta(seconds=seconds)),
    )


def _named(key_id: str, known: Iterable[ApiKey]) -> ApiKey:
    for key in known:
        if key.id == key_id:
            return key
    raise _no_key(key_id)


def _read(key_id: str, value: bytes) -> ApiKey:
    try:
        return ApiKey.model_validate_json(value)
    except ValidationError as error:
        raise InvalidRequest(f"The API key {key_id} cannot be read by this version; revoke it.") from error


def _no_key(key_id: str) -> ApiKeyNotFound:
    return ApiKeyNotFound(f"There is no API key {key_id[:64]}; `deepinfer keys list` lists them.")
