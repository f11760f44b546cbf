"""A network between two processes of a pipeline that can be cut: a proxy in front of a stage's port."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from deepinfer.engine_shim.engines.layer_shard.pipeline.handshake import Role

_ROLE_AT = len(b"dILS hello") + 1  # in a greeting, which begins every connection
_RESET = struct.pack("ii", 1, 0)


class _Connection:
    """Both sides of one connection, as long as it is passed on."""

    def __init__(self, near: socket.socket, far: socket.socket, role: Role) -> None:
        self.near, self.far, self.role = near, far, role
        self.open = threading.Event()
        self.open.set()

    def pass_on(self) -> None:
        for source, target in ((self.near, self.far), (self.far, self.near)):
            threading.Thread(target=self._pump, args=(source, target), daemon=True).start()

    def end(self, *, reset: bool = False) -> None:
        self.open.set()
        for side in (self.near, self.far):
            if reset:
                side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            else:
                with suppress(OSError):
                    side.shutdown(socket.SHUT_RDWR)
            side.close()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while piece := source.recv(1 << 16):
                self.open.wait()
                target.sendall(piece)
        self.open.wait()
        for side in (source, target):
            with suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)


class TcpProxy:
    """Passes everything on, until connections of some roles are cut."""

    def __init__(self, endpoint: str) -> None:
        host, _, port = endpoint.rpartition(":")
        self._to = (host, int(port))
        self._connections: list[_Connection] = []
        self._silent: tuple[Role, ...] = ()
        self._socket = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self._socket.getsockname()[1]}"

    def silence(self, *roles: Role) -> None:
        """From now on nothing passes, also of new connections; sockets stay open."""
        self._silent = roles
        for connection in self._of(roles):
            connection.open.clear()

    def reset(self, *roles: Role) -> None:
        """Once, of the connections there are."""
        for connection in self._of(roles):
            connection.end(reset=True)

    def close(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for connection in self._connections:
            connection.end()

    def _of(self, roles: tuple[Role, ...]) -> list[_Connection]:
        return [connection for connection in self._connections if connection.role in roles]

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, near: socket.socket) -> None:
        greeting = near.recv(1 << 16, socket.MSG_PEEK)  # a greeting is one small piece
        far = socket.create_connection(self._to)
        connection = _Connection(near, far, Role(greeting[_ROLE_AT]))
        if connection.role in self._silent:
            connection.open.clear()
        self._connections.append(connection)
        connection.pass_on()


@contextmanager
def proxied(endpoint: str) -> Iterator[TcpProxy]:
    proxy = TcpProxy(endpoint)
    try:
        yield proxy
    finally:
        proxy.close()
