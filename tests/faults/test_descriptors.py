"""Row 60: a gateway runs out of file descriptors. What has a connection keeps it, and who comes is told at once."""

from __future__ import annotations

import resource
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from tests.faults.fault_fleet import FaultFleet
from tests.faults.invariants import standing
from tests.faults.traffic import check, streamed
from tests.fleet import eventually, metric, routed

SPARE, IDLE = 30, 300
STREAMS = 8
SLOW = {"seconds_per_output_token": 0.4}
"""A stream takes twelve seconds at least."""
PATIENT = "header_seconds = 120\n"
"""Else who says nothing is soon hung up on, and the fault is over."""
AT_ONCE_SECONDS = 2
RECOVERED_SECONDS = 2


@contextmanager
def idle_connections(port: int, count: int) -> Iterator[None]:
    """Of clients that connect and say nothing."""
    with ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=5))
        yield


def answers_a_newcomer(fleet: FaultFleet) -> bool:
    try:
        return httpx.get(f"{fleet.url}/v1/models", timeout=AT_ONCE_SECONDS, trust_env=False).status_code == 200
    except httpx.TransportError as error:
        assert not isinstance(error, httpx.TimeoutException), "a newcomer is left waiting"
        return False


def starts(fleet: FaultFleet, model: str) -> bool:
    """It has an endpoint, so the gateway has somewhere to connect to."""
    return any(status.endpoint for status in fleet.now().statuses if status.id.startswith(f"{model}-"))


@pytest.mark.faults
def test_row_60_a_gateway_without_descriptors_refuses_newcomers_and_serves_whom_it_has(tmp_path: Path) -> None:
    with FaultFleet(tmp_path, serve=PATIENT).running() as fleet:
        fleet.simulate("slow", engine_args=SLOW)
        fleet.simulate()
        serve = psutil.Process(fleet.gateways[0].pid)
        ends: list[str] = []

        def running() -> bool:
            return metric(fleet.http, "deepinfer_num_requests_running", 'model_name="slow"') == STREAMS

        def ask(number: int) -> None:
            prompt = f"tale {number}"
            with httpx.Client(timeout=30, trust_env=False) as http:
                check(streamed(http, fleet.url, "slow", prompt), prompt)
                ends.append("whole")

        with standing(fleet) as traffic:
            threads = [threading.Thread(target=ask, args=(number,)) for number in range(STREAMS)]
            for thread in threads:
                thread.start()
            eventually(running)
            was = serve.rlimit(resource.RLIMIT_NOFILE)
            limit = serve.num_fds() + SPARE
            serve.rlimit(resource.RLIMIT_NOFILE, (limit, was[1]))
            with idle_connections(fleet.port, IDLE):
                eventually(lambda: serve.num_fds() >= limit - 1, 10)
                assert not answers_a_newcomer(fleet)
                fleet.deploy(name="late", model="m", engine="sim", device="cpu")  # over a connection it has
                eventually(lambda: running() and starts(fleet, "late"))
                traffic.more()
                assert routed(fleet.http, "late") == 0
                assert running() and not answers_a_newcomer(fleet), "the fault was too short to show anything"
            eventually(lambda: answers_a_newcomer(fleet), RECOVERED_SECONDS)
            eventually(lambda: fleet.gateways[0].routes_to("late"), 5)
            for thread in threads:
                thread.join(30)
        assert ends == ["whole"] * STREAMS
        assert not traffic.tally.tried_again, traffic.tally.tried_again
