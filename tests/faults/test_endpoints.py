"""Rows 24 and 25: something else answers where an engine was.

Between a port's choice and its use there is no moment at which it could be stolen: the shim binds its last one if that
is free, and else the kernel chooses. What is left of row 24 is that a taken port is never taken for the new engine's.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.faults.fault_fleet import FaultFleet, stopped
from tests.faults.invariants import standing
from tests.faults.private_network import ports_of, private_network, redirected
from tests.fleet import eventually


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[FaultFleet]:
    with private_network(), FaultFleet(tmp_path).running() as fleet:
        fleet.simulate("other")
        fleet.simulate("chat")
        yield fleet


def replica(fleet: FaultFleet, name: str) -> dict[str, Any]:
    (found,) = fleet.replicas(name)
    return found


def port_of(fleet: FaultFleet, name: str) -> int:
    return int(replica(fleet, name)["endpoint"].rpartition(":")[2])


def asked(fleet: FaultFleet, name: str) -> int:
    """The status of a short question's answer."""
    return fleet.http.post("/v1/completions", json={"model": name, "prompt": "hello", "max_tokens": 3}).status_code


def killed_without_an_agent(fleet: FaultFleet, name: str) -> None:
    """So that etcd goes on saying that it is ready, where it was."""
    fleet.kill_worker()
    os.kill(replica(fleet, name)["pid"], signal.SIGKILL)
    eventually(lambda: not fleet.gateways[0].routes_to(name), 2)


def test_row_25_another_engine_at_a_stale_endpoint_gets_no_request(serving: FaultFleet) -> None:
    old, theirs = (ports_of(replica(serving, name)["pid"]) for name in ("chat", "other"))
    endpoint = port_of(serving, "other")
    with standing(serving, "other", breaks="chat") as traffic, ExitStack() as rules:
        killed_without_an_agent(serving, "chat")
        for port in old:  # its old port of calls, too, leads to the other's, and is not free any more
            rules.enter_context(socket.create_server(("127.0.0.1", port)))
            is_endpoint = port == port_of(serving, "chat")
            to = next(their for their in theirs if (their == endpoint) is is_endpoint)
            rules.enter_context(redirected(port, to))
        log = serving.home / serving.gateways[0].log
        eventually(lambda: "answers other-" in log.read_text(), 5)
        for _ in range(5):
            assert asked(serving, "chat") == 503
            traffic.more(1)
        serving.start_worker()
        serving.routed_everywhere("chat")
        assert asked(serving, "chat") == 200
        assert not set(old) & set(ports_of(replica(serving, "chat")["pid"]))


def is_free(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


@contextmanager
def stranger(port: int) -> Iterator[list[str]]:
    """Takes a port and answers every question there with 200; what it was asked."""
    heard: list[str] = []

    class Friendly(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", port), Friendly) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield heard
        finally:
            server.shutdown()


def test_row_24_an_engine_whose_port_was_taken_comes_back_on_another(serving: FaultFleet) -> None:
    """Taken while it is away, by something that likes every request."""
    before = replica(serving, "chat")
    port = port_of(serving, "chat")
    with standing(serving, "other", breaks="chat"):
        with ExitStack() as taken:
            with stopped(serving.workers["node-1"].pid):  # or its successor could be first
                os.kill(before["pid"], signal.SIGKILL)
                eventually(lambda: is_free(port), 5)  # a killed process's threads end one by one
                heard = taken.enter_context(stranger(port))
            eventually(lambda: replica(serving, "chat")["pid"] not in (None, before["pid"]), 20)
            serving.routed_everywhere("chat")
            assert port_of(serving, "chat") != port
            assert [asked(serving, "chat") for _ in range(5)] == [200] * 5
        assert not [path for path in heard if path.startswith("/v1/")]
