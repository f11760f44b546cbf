"""What the command line shows a server of itself: never an argument, so that no list of processes tells it."""

from __future__ import annotations

import ipaddress
import os
from urllib.parse import urlsplit

from deepinfer.fleet.admin_token import admin_token
from deepinfer.fleet.api_key import VARIABLE
from deepinfer.fleet.loopback import is_loopback


def secret_for(url: str) -> str | None:
    """The user's own API key; else the admin token that a `serve` of this user on this machine has left."""
    given = os.environ.get(VARIABLE, "").strip()
    if given:
        return given
    parts = urlsplit(url)
    return admin_token(parts.port or 80) if is_local(parts.hostname or "") else None


def is_local(host: str) -> bool:
    """Loopback, or every address of this machine, as a server may be told to listen."""
    try:
        return is_loopback(host) or ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False
