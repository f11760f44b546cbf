"""The management API's paths of API keys. A secret is told once, when its key is made."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Path, Response

from deepinfer.control_plane.management.api_keys import ApiKeys
from deepinfer.control_plane.management.dependencies import Body, TheMirror
from deepinfer.control_plane.management.key_requests import changed_fields, new_key
from deepinfer.control_plane.management.request_schemas import KEY_CHANGES, NEW_KEY
from deepinfer.control_plane.management.views import View
from deepinfer.fleet.api_key import ApiKey, KeyLimits, Role, new_secret

router = APIRouter(prefix="/v1/api_keys", tags=["API keys"])


class ApiKeyView(View):
    """A key, without what opens anything."""

    id: str
    name: str
    role: Role
    models: tuple[str, ...]
    limits: KeyLimits
    priority: int
    created_at: str
    expires_at: str | None


class NewApiKeyView(ApiKeyView):
    """A key and its secret, which nothing can tell again."""

    secret: str


class ApiKeyList(View):
    """Every key, by name."""

    object: Literal["list"] = "list"
    data: tuple[ApiKeyView, ...]


class Revoked(View):
    """The key opens nothing any more."""

    id: str
    revoked: Literal[True] = True


def _keys_of(mirror: TheMirror) -> ApiKeys:
    return ApiKeys(mirror)


Keys = Annotated[ApiKeys, Depends(_keys_of)]
KeyId = Annotated[str, Path(pattern="^[0-9a-f]{12}$", description="The key's id, 12 hexadecimal digits.")]


@router.post("", status_code=201, openapi_extra=NEW_KEY)
async def create_key(response: Response, body: Body, keys: Keys) -> NewApiKeyView:
    """Make a key. The answer has its secret, this once: what is stored cannot be turned back into it."""
    secret = new_secret()
    key = await keys.add(new_key(body), secret)
    response.headers["cache-control"] = "no-store"
    return NewApiKeyView(secret=secret, **_fields(key))


@router.get("")
async def list_keys(keys: Keys) -> ApiKeyList:
    """Every key."""
    return ApiKeyList(data=tuple(ApiKeyView(**_fields(key)) for key in await keys.all()))


@router.get("/{key_id}")
async def get_key(key_id: KeyId, keys: Keys) -> ApiKeyView:
    """One key."""
    return ApiKeyView(**_fields(await keys.one(key_id)))


@router.patch("/{key_id}", openapi_extra=KEY_CHANGES)
async def patch_key(key_id: KeyId, body: Body, keys: Keys) -> ApiKeyView:
    """Replace its models, limits or priority, each as a whole; null gives one its default again."""
    return ApiKeyView(**_fields(await keys.change(key_id, changed_fields(body))))


@router.delete("/{key_id}")
async def revoke_key(key_id: KeyId, keys: Keys) -> Revoked:
    """It opens nothing any more, within a second at every server. Answers that run are finished."""
    await keys.revoke(key_id)
    return Revoked(id=key_id)


def _fields(key: ApiKey) -> dict[str, Any]:
    return {field: getattr(key, field) for field in ApiKeyView.model_fields}
