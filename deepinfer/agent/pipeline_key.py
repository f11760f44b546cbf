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
import tempfile
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
        if not path.exists():
            _make(path)
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


def _make(path: Path) -> None:
    """All of it at once: who starts at the same time finds no key, or the whole of it; the first one's is kept."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # for nobody else to read
    made = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_hex(_BYTES).encode())
        with suppress(FileExistsError):
            path.hardlink_to(made)
    finally:
        made.unlink()
