"""A stage's port: lets in who proves to know the replica's secret. Whoever does not is refused, logged once, forgotten.

A thread for each connection, of which only a few may be unproved at a time, so that silent strangers fill nothing up.
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
        self._places = threading.Semaphore(UNPROVED_AT_ONCE)
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
            if self._places.acquire(blocking=False):
                arguments = (connection, str(address[0]))
                threading.Thread(target=self._greet, args=arguments, name="stage-peer", daemon=True).start()
            else:
                self._refuse(connection, str(address[0]), f"is one of more than {UNPROVED_AT_ONCE} unproved ones")

    def _greet(self, connection: socket.socket, host: str) -> None:
        try:
            role = let_in(connection, self._secret, self._stage)
        except (NotAuthenticated, OSError) as error:
            self._refuse(connection, host, str(error))
            return
        finally:
            self._places.release()
        link = Link(connection)
        try:
            self._admitted(role, link)
        finally:
            link.close()

    def _refuse(self, connection: socket.socket, host: str, reason: str) -> None:
        connection.close()
        if (host, reason) not in self._told and len(self._told) < _MOST_REMEMBERED:
            self._told.add((host, reason))
            log.warning("a connection from %s to the port of stage %s was refused: it %s", host, self._stage, reason)
