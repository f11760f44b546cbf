"""Where a shim listens: a unix socket for its agent, a loopback port for gateways."""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import grpc.aio

from deepinfer.fleet.errors import EngineFailed, EngineWillNotStart

_LONGEST_SOCKET_PATH: Final = 103  # what every Unix we run on takes (macOS 103, Linux 107)

log = logging.getLogger(__name__)


class AlreadyServed(EngineFailed):
    """Another shim answers on this socket."""


def check_host(host: str) -> None:
    """The service has no authentication, so it is never offered to a network."""
    with suppress(ValueError):
        if host == "localhost" or ipaddress.ip_address(host).is_loopback:
            return
    raise EngineWillNotStart(f"The shim listens on loopback addresses only, not on {host!r}; use 127.0.0.1.")


def add_loopback_port(server: grpc.aio.Server, host: str, wanted: int = 0) -> str:
    """The endpoint: at the port `wanted` while that is free, else at one that the kernel chooses."""
    check_host(host)
    shown = f"[{host}]" if ":" in host else host
    try:
        port = server.add_insecure_port(f"{shown}:{wanted}")
    except RuntimeError as error:
        if not wanted:
            raise
        log.warning("listening on another port than before: %s", error)
        port = server.add_insecure_port(f"{shown}:0")
    return f"{shown}:{port}"


@contextmanager
def unix_socket(server: grpc.aio.Server, path: Path) -> Iterator[None]:
    """Replaces a socket that nobody answers on, and removes its own in the end."""
    if len(os.fsencode(path)) > _LONGEST_SOCKET_PATH:
        longest = _LONGEST_SOCKET_PATH
        raise EngineWillNotStart(f"The socket path {path} is longer than {longest} bytes; use a shorter state folder.")
    if _answers(path):
        raise AlreadyServed(f"Another shim answers on {path}; it is left alone.")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    before = os.umask(0o077)  # the socket is its owner's only
    try:
        server.add_insecure_port(f"unix:{path}")
    finally:
        os.umask(before)
    identity = path.stat().st_ino
    try:
        yield
    finally:
        with suppress(FileNotFoundError):
            if path.stat().st_ino == identity:  # else a successor's
                path.unlink()


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True
