"""The links of `make bench-shards`: bytes come whole and in order, late by what was asked, as many as are sent."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from benchmarks.shards.delaying_proxy import DelayingProxy

DELAY = 0.05


@pytest.fixture
def echo() -> Iterator[str]:
    """The endpoint of somebody who sends everything back and then hangs up."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = server.accept()
        with connection:
            while data := connection.recv(1 << 16):
                connection.sendall(data)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield f"127.0.0.1:{server.getsockname()[1]}"
    thread.join(5)
    server.close()


@pytest.fixture
def connection(echo: str) -> Iterator[socket.socket]:
    proxy = DelayingProxy(echo, DELAY)
    host, _, port = proxy.endpoint.rpartition(":")
    with socket.create_connection((host, int(port)), 5) as connected:
        yield connected
    proxy.close()


def test_a_round_trip_takes_both_delays(connection: socket.socket) -> None:
    began = time.perf_counter()
    connection.sendall(b"x")
    assert connection.recv(1) == b"x"
    assert 2 * DELAY <= time.perf_counter() - began < 2 * DELAY + 0.2


def test_bytes_come_whole_and_the_delay_limits_no_bandwidth(connection: socket.socket) -> None:
    """A megabyte a time: one after the other would take a hundred delays."""
    data = bytes(range(256)) * 4096
    began = time.perf_counter()

    def send() -> None:
        for _ in range(50):
            connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)

    threading.Thread(target=send, daemon=True).start()
    received = bytearray()
    while piece := connection.recv(1 << 20):
        received += piece
    assert bytes(received) == data * 50
    assert time.perf_counter() - began < 50 * DELAY
