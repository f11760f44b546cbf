"""How one gets in: where a member listens, over TLS or not, as whom, and below which keys. Plain values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import urlsplit


class Address(NamedTuple):
    """Of one member; `tls` is None where the text does not say."""

    host_port: str
    tls: bool | None


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM texts. Without `ca`, the system's own authorities; with `certificate` and `key`, we show who we are too."""

    ca: bytes | None = None
    certificate: bytes | None = None
    key: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Login:
    """`password` is asked at every login, so that a rotated one is found; it may raise OSError."""

    username: str
    password: Callable[[], str] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Access:
    """Without anything: no TLS unless an endpoint says https, no login, all keys."""

    tls: Tls | None = None
    login: Login | None = None
    namespace: bytes = b""


OPEN = Access()


def address_of(text: str) -> Address:
    """`host:port`, `http://host:port` or `https://host:port`. Raises ValueError with a sentence."""
    scheme, separator, rest = text.rpartition("://")
    if "@" in rest:  # not repeated in the message: it may hold a password
        raise ValueError("an etcd endpoint names no user; use username and password_file")
    wrong = f'"{text}" is no etcd endpoint; write HOST:PORT or https://HOST:PORT'
    try:
        parts = urlsplit(f"//{rest}")
        sound = parts.hostname and parts.port and parts.path in ("", "/") and not parts.query and not parts.fragment
    except ValueError:
        sound = False
    if not sound or (separator and scheme not in ("http", "https")) or any(c.isspace() for c in text):
        raise ValueError(wrong)
    return Address(parts.netloc, scheme == "https" if separator else None)
