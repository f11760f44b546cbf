"""API keys that a test hands out, and a ring of them."""

from __future__ import annotations

from typing import Any

from deepinfer.control_plane.access.key_ring import KeyRing
from deepinfer.fleet.api_key import ApiKey, digest_of
from deepinfer.fleet.snapshot import Snapshot

ADMIN_TOKEN = "di-of-this-serve"
USER, LIMITED, ADMIN = "di-user", "di-limited", "di-admin"


def key(secret: str, name: str = "key", **fields: Any) -> ApiKey:
    digest = digest_of(secret)
    return ApiKey(id=digest[:12], name=name, sha256=digest, created_at="2026-01-01T00:00:00Z", **fields)


KEYS = (key(USER, "user"), key(LIMITED, "limited", models=("org/model",)), key(ADMIN, "admin", role="admin"))


def ring_of(*keys: ApiKey) -> KeyRing:
    """With the admin token besides."""
    ring = KeyRing(ADMIN_TOKEN)
    ring.update(Snapshot(api_keys=keys))
    return ring


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}
