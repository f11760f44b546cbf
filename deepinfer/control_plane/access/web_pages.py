"""What web pages may do here. Pure: from a request's headers to an error, or none.

A browser on this machine reaches loopback, and where no keys are required nothing else holds its pages back. A page of
another origin is told by its Origin header or by Sec-Fetch-Site; one that renamed our address to its own host (DNS
rebinding) is told by the Host header, and it may not even read. Every browser sends a Host; programs send no Origin.
Where keys are required they are the guard: no cookie opens anything, and a page that knows no key has none to send.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from deepinfer.control_plane.openai_errors import ForeignOrigin, InvalidHost
from deepinfer.fleet.loopback import is_loopback

Headers = Mapping[bytes, bytes]

_HOST = re.compile(rb"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(:[0-9]{1,5})?")
_OWN_SITES = (b"none", b"same-origin")  # "same-site" is whatever else listens on this machine


@dataclass(frozen=True, slots=True)
class WebPages:
    """The guard of one server."""

    origins: frozenset[bytes] = frozenset()  # whose pages may use it
    keyless: bool = True
    on_loopback: bool = True  # only this machine can reach it

    def refuse(self, sent: Headers, *, acts: bool) -> None:
        """Raises `InvalidHost` and `ForeignOrigin`. `acts`: it may do more than read."""
        host = sent.get(b"host", b"")
        leads_here = not host or _leads_here(host)
        if not self.keyless:
            return
        if self.on_loopback and not leads_here:
            raise ForeignOrigin(
                f"Host {_shown(host)} is not this machine's loopback; use http://127.0.0.1, or require API keys "
                "(--with-authentication)."
            )
        if acts:
            self._refuse_foreign(sent, host)

    def allows(self, origin: bytes | None) -> bool:
        return origin is not None and (origin in self.origins or b"*" in self.origins)

    def _refuse_foreign(self, sent: Headers, host: bytes) -> None:
        origin = sent.get(b"origin")
        if origin is None:
            if sent.get(b"sec-fetch-site", b"none") not in _OWN_SITES:
                raise ForeignOrigin("A web page of another site may not use this server; see cors_origins in [serve].")
        elif _address(origin) != host.lower() and not self.allows(origin):
            raise ForeignOrigin(f"Origin {_shown(origin)} may not use this server; see cors_origins in [serve].")


def is_preflight(method: str, sent: Headers) -> bool:
    """A browser asks whether it may let a page ask."""
    return method == "OPTIONS" and b"origin" in sent and b"access-control-request-method" in sent


def allowing(origin: bytes) -> list[tuple[bytes, bytes]]:
    """The headers that let its page read an answer. Credentials are never allowed: nothing here goes by cookies."""
    return [
        (b"access-control-allow-origin", origin),
        (b"access-control-expose-headers", b"*"),
        (b"vary", b"origin"),
    ]


def preflight_headers(sent: Headers) -> tuple[tuple[bytes, bytes], ...]:
    """What a page may send, which is what it asks to send: keys are the guard, not the names of headers."""
    wanted = sent.get(b"access-control-request-headers", b"authorization, content-type")
    return (
        (b"access-control-allow-methods", b"GET, POST, PUT, PATCH, DELETE"),
        (b"access-control-allow-headers", wanted),
        (b"access-control-max-age", b"600"),
    )


@lru_cache(maxsize=256)
def _leads_here(host: bytes) -> bool:
    """Whether only this machine is named so. Raises `InvalidHost`."""
    found = _HOST.fullmatch(host)
    if found is None:
        raise InvalidHost(f"The Host header {_shown(host)} is no host and port.")
    return is_loopback(found[1].decode().strip("[]").lower())


def _address(origin: bytes) -> bytes:
    """Its host and port; something that equals no host for what is not http(s), such as "null"."""
    scheme, _, address = origin.partition(b"://")
    return address.lower() if scheme in (b"http", b"https") else b"\0"


def _shown(value: bytes) -> str:
    return repr(value[:100].decode("latin-1"))
