"""Aliases in the store: the only writer of their keys. An alias and a deployment never have the same name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from deepinfer.control_plane.management.retrying import retrying
from deepinfer.control_plane.openai_errors import AliasNotFound
from deepinfer.fleet import keys
from deepinfer.fleet.alias import MOST_TARGETS, Alias
from deepinfer.fleet.errors import DeploymentExists, DeploymentNotFound, InvalidRequest
from deepinfer.fleet.mirror import Mirror
from deepinfer.fleet.told_time import told_time

NAME = "at most 128 letters, digits, '.', '_', ':' or '-', in parts divided by '/' that begin with a letter or digit"
TARGETS = (
    f"a list of 1 to {MOST_TARGETS} objects, each deployment once and with a weight from 1 to 10000, such as "
    '[{"deployment": "chat", "weight": 9}]'
)


class Aliases:
    """Other names for deployments."""

    def __init__(self, store: Mirror) -> None:
        self._store = store

    async def put(self, wanted: Alias) -> bool:
        """Whether it is new. Raises `DeploymentExists` for a name in use, and `DeploymentNotFound` for a target."""
        own = keys.alias(wanted.name)
        same_name = keys.deployment(wanted.name)
        targets = [keys.deployment(target.deployment) for target in wanted.targets]

        async def once() -> bool:
            reading = await self._store.read(own, same_name, *targets)
            if same_name in reading.entries:
                raise DeploymentExists(f"{wanted.name} is a deployment; an alias needs a name of its own.")
            for target, key in zip(wanted.targets, targets, strict=True):
                if key not in reading.entries:
                    raise DeploymentNotFound(
                        f"There is no deployment {target.deployment} for the alias {wanted.name}; "
                        "`deepinfer get deployments` lists them."
                    )
            known = _readable(reading.values.get(own))
            if known is None or known.targets != wanted.targets:
                record = wanted if known is None else known.model_copy(update={"targets": wanted.targets})
                guards = {key: reading.mod_revision(key) for key in (own, same_name)}
                await self._store.commit({own: record.to_json()}, also_unchanged=guards)
            return own not in reading.entries

        return await retrying(once)

    async def remove(self, name: str) -> None:
        """Also one whose record cannot be read. Raises `AliasNotFound`."""

        async def once() -> None:
            reading = await self._store.read(keys.alias(name))
            if keys.alias(name) not in reading.entries:
                raise no_alias(name)
            await self._store.commit({keys.alias(name): None}, if_unchanged=reading)

        await retrying(once)


def no_alias(name: str) -> AliasNotFound:
    return AliasNotFound(f"There is no alias {name[:200]!r}; `deepinfer alias list` lists them.")


def asked_alias(name: str, body: Mapping[str, Any]) -> Alias:
    """What a request asks for. Raises `InvalidRequest`."""
    for field in body:
        if field != "targets":
            raise InvalidRequest(f"Unknown field {json.dumps(field[:64])}; the only one is targets.", param=field)
    for target in body["targets"] if isinstance(body.get("targets"), list) else ():
        for field in target if isinstance(target, dict) else ():
            if field not in ("deployment", "weight"):
                told = f"Unknown field {json.dumps(field[:64])}; a target has a deployment and a weight."
                raise InvalidRequest(told, param=f"targets.{field}")
    try:
        given = {"name": name, "created_at": told_time(), **body}
        return Alias.model_validate_json(json.dumps(given), strict=True)
    except ValidationError as error:
        wrong = error.errors()[0]
        if wrong["type"] == "value_error":
            raise InvalidRequest(f"targets: {wrong['msg'].removeprefix('Value error, ')}.", param="targets") from error
        field = str(wrong["loc"][0])
        raise InvalidRequest(f"{field} must be {NAME if field == 'name' else TARGETS}.", param=field) from error


def _readable(value: bytes | None) -> Alias | None:
    """What cannot be read is written anew."""
    try:
        return None if value is None else Alias.model_validate_json(value)
    except ValidationError:
        return None
