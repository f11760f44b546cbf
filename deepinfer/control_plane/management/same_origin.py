"""No web page may change the fleet. A browser on this machine reaches loopback, and there is no login yet.

A page of another origin is told by its Origin header; one that renamed our address to its own host (DNS rebinding) is
told by the Host header. Programs send no Origin and our own address. Reading is not refused here: browsers do that.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from urllib.parse import urlsplit

from fastapi import Request

from deepinfer.control_plane.openai_errors import ForeignOrigin

READING = frozenset({"GET", "HEAD", "OPTIONS"})


async def refuse_foreign_origins(request: Request) -> None:
    """`refuse_foreign_pages` as FastAPI calls it."""
    refuse_foreign_pages(request.method, dict(request.headers.raw))


def refuse_foreign_pages(method: str, headers: Mapping[bytes, bytes]) -> None:
    """Raises `ForeignOrigin` for a request that changes something and that a foreign web page may have sent."""
    if method in READING:
        return
    host = headers.get(b"host", b"").decode("latin-1")
    origin = headers[b"origin"].decode("latin-1") if b"origin" in headers else None
    if not _is_ours(host):
        raise ForeignOrigin(f"Host {host!r} is not this machine's loopback; use http://127.0.0.1 and the port.")
    if origin is not None and _address(origin) != host.lower():
        raise ForeignOrigin(f"Origin {origin!r} may not change the fleet; only pages of http://{host} may.")


def _address(origin: str) -> str:
    """Its host and port; something that equals no host for what is not http(s), such as "null"."""
    scheme, _, address = origin.partition("://")
    return address.lower() if scheme in ("http", "https") else "\0"


def _is_ours(host: str) -> bool:
    """Loopback by name or number: serve listens nowhere else."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
