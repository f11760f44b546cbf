"""Which keys open this server now: those of the last view of the store, and its own admin token.

While the store is away the keys known last stay good. Before it was read nobody comes in. What is kept is digests: a
secret that was shown is forgotten with its connection, and asked for anew at each request: nothing outlives a
revocation.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable
from datetime import datetime
from hashlib import sha256
from math import inf
from typing import NamedTuple, NewType

from deepinfer.control_plane.access.caller import LOCAL_ADMIN, Caller, caller_with
from deepinfer.control_plane.openai_errors import InvalidApiKey
from deepinfer.fleet.api_key import ApiKey
from deepinfer.fleet.errors import StoreUnavailable
from deepinfer.fleet.snapshot import Snapshot

_LONGEST_SECRET = 256

Digest = NewType("Digest", bytes)
"""Of a secret, and never the secret itself."""


class _Known(NamedTuple):
    digest: bytes
    expires: float  # by the wall clock
    caller: Caller


class KeyRing:
    """Call `update` after every reading of the store."""

    def __init__(self, admin_token: str, now: Callable[[], float] = time.time) -> None:
        self._own = _Known(sha256(admin_token.encode()).digest(), inf, LOCAL_ADMIN)
        self._now = now
        self._keys: tuple[ApiKey, ...] | None = None
        self._known: dict[bytes, _Known] = {}

    def update(self, fleet: Snapshot) -> None:
        if fleet.api_keys is not self._keys:
            self._keys = fleet.api_keys
            self._known = {known.digest: known for known in (*map(_known, self._keys), self._own)}

    def caller(self, digest: Digest) -> Caller:
        """Of a secret. Raises `InvalidApiKey`, and `StoreUnavailable` before the store was read."""
        if self._keys is None:
            raise StoreUnavailable("serve has not read its API keys yet; its log says why. Try again soon.")
        known = self._known.get(digest)
        if known is None or not hmac.compare_digest(known.digest, digest):
            raise InvalidApiKey("This API key opens nothing here: it was mistyped, or revoked.")
        if known.expires <= self._now():
            raise InvalidApiKey("This API key has expired; `deepinfer keys create` makes another.")
        return known.caller


def digest_shown(secret: bytes) -> Digest:
    """By which a key is known."""
    return Digest(sha256(secret[:_LONGEST_SECRET]).digest())


def _known(key: ApiKey) -> _Known:
    expires = datetime.fromisoformat(key.expires_at).timestamp() if key.expires_at else inf
    return _Known(bytes.fromhex(key.sha256), expires, caller_with(key))
