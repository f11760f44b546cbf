"""TCP links with time added: what arrives is sent on so many milliseconds later, as fast as it came.

    python -m benchmarks.shards.delaying_proxy MILLISECONDS HOST:PORT...

Prints one endpoint for each target, on one line. Ends when stdin does. Each direction of a connection has a thread that
reads and one that waits and writes: event loops' timers are a millisecond too coarse for that.
"""

from __future__ import annotations

import queue
import socket
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress

_AT_ONCE = 1 << 18
_END = b""


class DelayingProxy:
    """Listens on a free port of loopback as soon as it is made."""

    def __init__(self, target: str, seconds: float) -> None:
        host, _, port = target.rpartition(":")
        self._target, self._seconds = (host, int(port)), seconds
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=64)
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()

    @property
    def endpoint(self) -> str:
        host, port = self._socket.getsockname()
        return f"{host}:{port}"

    def close(self) -> None:
        """Takes no more connections."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._socket.accept()
            except OSError:
                return  # closed
            try:
                far = socket.create_connection(self._target)
            except OSError:
                near.close()
                continue
            for one, other in ((near, far), (far, near)):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                _Direction(one, other, self._seconds).start()


class _Direction:
    """One way of one connection."""

    def __init__(self, source: socket.socket, sink: socket.socket, seconds: float) -> None:
        self._source, self._sink, self._seconds = source, sink, seconds
        self._under_way: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()

    def start(self) -> None:
        for work in (self._read, self._write):
            threading.Thread(target=work, name="proxy-link", daemon=True).start()

    def _read(self) -> None:
        data = b"?"
        while data != _END:
            try:
                data = self._source.recv(_AT_ONCE)
            except OSError:
                data = _END
            self._under_way.put((time.perf_counter() + self._seconds, data))

    def _write(self) -> None:
        with suppress(OSError):
            while True:
                due, data = self._under_way.get()
                if (early := due - time.perf_counter()) > 0:
                    time.sleep(early)
                if data == _END:
                    break
                self._sink.sendall(data)
        with suppress(OSError):
            self._sink.shutdown(socket.SHUT_WR)
        with suppress(OSError):  # nobody takes it any more: its sender is to know
            self._source.shutdown(socket.SHUT_RD)


def main(arguments: Sequence[str]) -> None:
    milliseconds, *targets = arguments
    proxies = [DelayingProxy(target, float(milliseconds) / 1000) for target in targets]
    print(*(proxy.endpoint for proxy in proxies), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1:])
