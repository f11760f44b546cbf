"""Who may speak to a stage: who proves that they know its replica's secret, without saying it. Both sides prove it.

Each side sends 32 random bytes; a proof is HMAC-SHA256 over both, the speaker's role and the stage's name. So a
recorded connection opens nothing, and a proof for one stage opens no other. What follows is neither encrypted nor
signed: where others can write on the network, configure TLS.
"""

from __future__ import annotations

import hmac
import secrets
import socket
import time
from collections.abc import Callable
from enum import IntEnum
from typing import Final

from deepinfer.engine_shim.engines.layer_shard.pipeline.frames import VERSION

SECONDS: Final = 3.0  # for all of it
_MAGIC: Final = b"dILS hello"
_RANDOM: Final = 32
_HELLO: Final = len(_MAGIC) + 2 + _RANDOM
_PROOF: Final = 32
_WELCOME: Final = b"\x01"


class NotAuthenticated(ConnectionError):
    """The other side did not prove that it belongs to this replica, in words that follow its name."""


class Role(IntEnum):
    """What a connection to a stage is for."""

    HEAD = 1  # orders in, reports out
    ROWS = 2  # from the stage before


class Secret:
    """A replica's secret. It is never shown."""

    def __init__(self, secret: bytes) -> None:
        if len(secret) < 16:
            raise ValueError("a replica's secret has at least 16 bytes")
        self._secret = secret

    def proof(self, speaker: bytes, stage: str, *randoms: bytes) -> bytes:
        text = b"\0".join((speaker, stage.encode(), b"".join(randoms)))
        return hmac.digest(self._secret, text, "sha256")


def ask_in(connection: socket.socket, secret: Secret, stage: str, role: Role) -> None:
    """The side that connects. Raises `NotAuthenticated` or `OSError`."""
    reading = _reading(connection)
    mine = secrets.token_bytes(_RANDOM)
    connection.sendall(_MAGIC + bytes((VERSION, role)) + mine)
    answer = reading(_RANDOM + _PROOF)
    theirs, proof = answer[:_RANDOM], answer[_RANDOM:]
    if not hmac.compare_digest(proof, secret.proof(b"stage", stage, bytes((role,)), mine, theirs)):
        raise NotAuthenticated("does not know this replica's secret")
    connection.sendall(secret.proof(b"peer", stage, bytes((role,)), mine, theirs))
    reading(len(_WELCOME))
    connection.settimeout(None)


def let_in(connection: socket.socket, secret: Secret, stage: str) -> Role:
    """The side that listens: what the other one wants. Raises `NotAuthenticated` or `OSError`."""
    reading = _reading(connection)
    hello = reading(_HELLO)
    magic, version, role, theirs = hello[: len(_MAGIC)], hello[-_RANDOM - 2], hello[-_RANDOM - 1], hello[-_RANDOM:]
    if magic != _MAGIC:
        raise NotAuthenticated("sent what is no greeting")
    if version != VERSION or role not in tuple(Role):
        raise NotAuthenticated(f"speaks version {version} and wants {role}, which is not known here")
    mine = secrets.token_bytes(_RANDOM)
    connection.sendall(mine + secret.proof(b"stage", stage, bytes((role,)), theirs, mine))
    if not hmac.compare_digest(reading(_PROOF), secret.proof(b"peer", stage, bytes((role,)), theirs, mine)):
        raise NotAuthenticated("does not know this replica's secret")
    connection.sendall(_WELCOME)
    connection.settimeout(None)
    return Role(role)


def _reading(connection: socket.socket) -> Callable[[int], bytes]:
    """Reads so many bytes, all within `SECONDS` from now: a byte a second must not hold a place for long."""
    deadline = time.monotonic() + SECONDS
    connection.settimeout(SECONDS)

    def read(count: int) -> bytes:
        held = bytearray()
        while len(held) < count:
            left = deadline - time.monotonic()
            if left <= 0:
                raise NotAuthenticated(f"took longer than {SECONDS:g} s to prove who it is")
            connection.settimeout(left)
            try:
                piece = connection.recv(count - len(held))
            except TimeoutError:
                continue
            if not piece:
                raise NotAuthenticated("hung up before it had proved who it is")
            held += piece
        return bytes(held)

    return read
