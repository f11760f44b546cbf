"""A stage's port: lets in who proves to know the replica's secret. Whoever does not is refused, logged once, forgotten.

A thread for each connection, of which only a few may be unproved at a time, so that silent strangers fill nothing up:
when one more comes, the oldest of them must go, for a head needs no more than a moment.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from deepinfer.engine_shim.engines.layer_shard.pipeline.handshake import NotAuthenticated, Role, Secret, let_in
from deepinfer.engine_shim.engines.layer_shard.pipeline.link import Link

UNPROVED_AT_ONCE: Final = 16
_MOST_REMEMBERED: Final = 1024

log = logging.getLogger(__name__)

Admitted = Callable[[Role, Link], None]


class Listener:
    """Listens as soon as it is made. `admitted` is called in the connection's own thread, which ends with it."""

    def __init__(self, address: tuple[str, int], secret: Secret, stage: str, admitted: Admitted) -> None:
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._socket = socket.create_server(address, family=family, backlog=64)
        self._secret, self._stage, self._admitted = secret, stage, admitted
        self._unproved: list[socket.socket] = []  # the oldest first
        self._changing = threading.Lock()
        self._told: set[tuple[str, str]] = set()
        threading.Thread(target=self._accept, name="stage-port", daemon=True).start()

    @property
    def endpoint(self) -> str:
        host, port = self._socket.getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def close(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes `accept`
        self._socket.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, address = self._socket.accept()
            except OSError:
                return  # closed
            with self._changing:
                self._unproved.append(connection)
                too_old = self._unproved.pop(0) if len(self._unproved) > UNPROVED_AT_ONCE else None
            if too_old:
                with suppress(OSError):
                    too_old.shutdown(socket.SHUT_RDWR)  # wakes its thread
            arguments = (connection, str(address[0]))
            threading.Thread(target=self._greet, args=arguments, name="stage-peer", daemon=True).start()

    def _greet(self, connection: socket.socket, host: str) -> None:
        try:
            role = let_in(connection, self._secret, self._stage)
        except (NotAuthenticated, OSError) as error:
            had_a_place = self._left(connection)
            self._refuse(
                connection,
                host,
                str(error) if had_a_place else f"was silent while more than {UNPROVED_AT_ONCE} were unproved",
            )
            return
        self._left(connection)
        link = Link(connection)
        try:
            self._admitted(role, link)
        finally:
            link.close()

    def _left(self, connection: socket.socket) -> bool:
        """It is not one of the unproved ones any more; whether it still was."""
        with self._changing:
            if connection in self._unproved:
                self._unproved.remove(connection)
                return True
        return False

    def _refuse(self, connection: socket.socket, host: str, reason: str) -> None:
        connection.close()
        if (host, reason) not in self._told and len(self._told) < _MOST_REMEMBERED:
            self._told.add((host, reason))
            log.warning("a connection from %s to the port of stage %s was refused: it %s", host, self._stage, reason)
