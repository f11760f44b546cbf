"""What the processes of replicas in stages know each other by: a key in a file, the same on all nodes of a fleet.

It never leaves the file but as what is derived from it: a secret for each deployment, and a fingerprint, by which the
control plane sees whether two nodes have the same. On one machine all workers of a user share the file; where stages
are to lie on several, it is copied there once.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

from deepinfer.fleet.config import InvalidConfig
from deepinfer.fleet.launch import PipelineLaunch
from deepinfer.fleet.pipeline import deployment_served, is_hosts_name
from deepinfer.fleet.resources import Placement

_BYTES = 32


class PipelineKey:
    """The key in `path`, made there if there is none. Raises `InvalidConfig` where others can read it."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(FileExistsError):
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(secrets.token_hex(_BYTES).encode())
        found = path.stat()
        if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
            raise InvalidConfig(f"{path} must be yours alone to read (chmod 600 {path}): it lets in who knows it.")
        self._key = path.read_bytes().strip()
        if len(self._key) < _BYTES:
            raise InvalidConfig(f"{path} holds no key of {_BYTES} bytes; remove it, or copy another node's.")

    @property
    def fingerprint(self) -> str:
        """Tells keys apart, and nothing about them."""
        return hmac.digest(self._key, b"fingerprint", "sha256").hex()[:12]

    def launch(self, placement: Placement, host: str) -> PipelineLaunch | None:
        """What a process of a replica in stages is told; None for any other."""
        if placement.spec.pipeline is None:
            return None
        uid = placement.id.rsplit("-", 2)[1]
        whose = f"{deployment_served(placement.deployment)} {uid}"
        secret = hmac.digest(self._key, whose.encode(), hashlib.sha256).hex()
        return PipelineLaunch(secret=secret, host=host, is_ready_at_once=is_hosts_name(placement.deployment))
