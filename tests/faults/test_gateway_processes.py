"""Row 5 among the gateway processes of one `serve`, which share a port; and what happens without the main one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress

import httpx
import psutil
import pytest

from deepinfer.fleet.places import runtime_dir
from tests.faults.fault_fleet import FaultFleet
from tests.faults.invariants import standing
from tests.fleet import eventually

GATEWAYS = 3
BACK_SECONDS = 2


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultFleet]:
    home = tmp_path_factory.mktemp("fleet")
    with FaultFleet(home, serve=f"gateways = {GATEWAYS}\n").running() as fleet:
        fleet.simulate()  # through whichever gateway the kernel chose
        yield fleet


def told(fleet: FaultFleet, name: str, label: str = "") -> dict[int, float]:
    """A figure by gateway: the sum of its samples with this label."""
    found: dict[int, float] = {}
    for line in httpx.get(f"{fleet.url}/metrics", timeout=5).text.splitlines():
        sample = re.match(rf'{name}{{gateway="(\d+)"(.*)}} (\S+)$', line)
        if sample and label in sample[2]:
            found[int(sample[1])] = found.get(int(sample[1]), 0) + float(sample[3])
    return found


def all_route(fleet: FaultFleet) -> bool:
    return list(told(fleet, "deepinfer_replicas", 'state="ready"').values()) == [1.0] * GATEWAYS


def processes(fleet: FaultFleet) -> list[psutil.Process]:
    """Besides the main one."""
    found = []
    for process in fleet.processes():
        with suppress(psutil.NoSuchProcess):  # or a zombie, which is one
            if process.cmdline()[-1].endswith("gateway_process"):
                found.append(process)
    return found


def test_row_5_a_killed_gateway_process_costs_its_clients_no_answer(fleet: FaultFleet) -> None:
    eventually(lambda: all_route(fleet))
    killed, other = processes(fleet)
    with standing(fleet) as traffic:
        for _ in range(10 * GATEWAYS):
            httpx.post(f"{fleet.url}/v1/completions", json={"model": "chat", "prompt": "hello", "max_tokens": 1})
        assert len(told(fleet, "deepinfer_requests_total", 'model_name="chat"')) == GATEWAYS
        killed.kill()
        traffic.more()
        eventually(lambda: not killed.is_running() and all_route(fleet), 10)
    (successor,) = [process for process in processes(fleet) if process != other]
    # What it takes where it need not share a core with its clients, and with whatever else runs here.
    assert sum(successor.cpu_times()[:2]) < BACK_SECONDS


def test_they_end_with_the_main_process_however_it_ended(fleet: FaultFleet) -> None:
    eventually(lambda: all_route(fleet))
    others = processes(fleet)
    assert len(others) == GATEWAYS - 1
    (main,) = fleet.gateways
    main.kill()
    _, alive = psutil.wait_procs(others, timeout=10)
    assert not alive
    assert not (runtime_dir() / f"serve-{main.pid}").exists()
    fleet.start_gateway(main)  # on the same port


@pytest.mark.faults
def test_one_that_hangs_is_replaced(fleet: FaultFleet) -> None:
    eventually(lambda: all_route(fleet))
    hanging = processes(fleet)[0]
    hanging.suspend()
    eventually(lambda: not hanging.is_running() and all_route(fleet), 30)
