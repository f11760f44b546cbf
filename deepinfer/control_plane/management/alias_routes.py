"""The management API's paths of aliases: other names for deployments, their requests split by weight."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Path, Request, Response
from pydantic import Field

from deepinfer.control_plane.management.aliases import NAME, TARGETS, Aliases, asked_alias, no_alias
from deepinfer.control_plane.management.dependencies import Body, Known, mirror_of, snapshot_now
from deepinfer.control_plane.management.views import View
from deepinfer.fleet.alias import Alias
from deepinfer.fleet.resource import NAME as NAME_PATTERN
from deepinfer.fleet.snapshot import Snapshot

router = APIRouter(prefix="/v1/aliases", tags=["aliases"])

_TARGET = {
    "type": "object",
    "properties": {
        "deployment": {
            "type": "string",
            "pattern": NAME_PATTERN,
            "description": "That takes this part of the requests.",
        },
        "weight": {"type": "integer", "minimum": 1, "maximum": 10_000, "default": 1},
    },
    "required": ["deployment"],
    "additionalProperties": False,
}
_ALIAS: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "targets": {
                            "type": "array",
                            "items": _TARGET,
                            "minItems": 1,
                            "maxItems": 16,
                            "description": TARGETS,
                        }
                    },
                    "required": ["targets"],
                    "additionalProperties": False,
                },
                "example": {"targets": [{"deployment": "chat", "weight": 9}, {"deployment": "chat-next"}]},
            }
        },
    }
}


class AliasTargetView(View):
    """One of the deployments that an alias means."""

    deployment: str
    weight: int
    exists: bool = Field(description="False: it was deleted; the others take its requests.")


class AliasView(View):
    """A name, and the deployments that requests for it go to."""

    name: str
    created_at: str
    targets: tuple[AliasTargetView, ...]
    message: str = Field(description="What is wrong with it; empty when all is well.")


class AliasList(View):
    """Every alias, by name."""

    object: Literal["list"] = "list"
    data: tuple[AliasView, ...]


class AliasRemoved(View):
    """The name is free again."""

    name: str
    removed: Literal[True] = True


_CREATED: dict[str, Any] = {"model": AliasView, "description": "It is new."}


def aliases_of(request: Request) -> Aliases:
    return Aliases(mirror_of(request))


AliasWrites = Annotated[Aliases, Depends(aliases_of)]
Name = Annotated[str, Path(description=f"It may have slashes, as in gpt-4o or org/model: {NAME}.")]


@router.get("")
async def list_aliases(fleet: Known) -> AliasList:
    """Every alias, and whether its deployments still exist."""
    return AliasList(data=tuple(_view(alias, fleet) for alias in fleet.aliases))


@router.get("/{name:path}")
async def get_alias(name: Name, fleet: Known) -> AliasView:
    """One alias."""
    return _named(name, fleet)


@router.put("/{name:path}", responses={201: _CREATED}, openapi_extra=_ALIAS)
async def put_alias(name: Name, request: Request, response: Response, body: Body, writes: AliasWrites) -> AliasView:
    """Create it (201) or replace its targets (200). Requests for it are split over its deployments by their weights.

    A deployment without a ready replica gets nothing while another one has one.
    """
    is_new = await writes.put(asked_alias(name, body))
    response.status_code = 201 if is_new else 200
    return _named(name, await snapshot_now(request))


@router.delete("/{name:path}")
async def remove_alias(name: Name, writes: AliasWrites) -> AliasRemoved:
    """Requests for that name are refused from now on; its deployments are left as they are."""
    await writes.remove(name)
    return AliasRemoved(name=name)


def _named(name: str, fleet: Snapshot) -> AliasView:
    for alias in fleet.aliases:
        if alias.name == name:
            return _view(alias, fleet)
    raise no_alias(name)


def _view(alias: Alias, fleet: Snapshot) -> AliasView:
    there_are = {deployment.name for deployment in fleet.deployments}
    targets = tuple(
        AliasTargetView(deployment=t.deployment, weight=t.weight, exists=t.deployment in there_are)
        for t in alias.targets
    )
    gone = [target.deployment for target in targets if not target.exists]
    message = f"it points at {', '.join(gone)}, which {'is' if len(gone) == 1 else 'are'} not deployed" if gone else ""
    return AliasView(name=alias.name, created_at=alias.created_at, targets=targets, message=message)
