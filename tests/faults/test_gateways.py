"""Rows 1, 5 and 6: `serve` is killed. Scheduler, router and gateway are one process here, so one fault breaks all."""

from __future__ import annotations

import time
from pathlib import Path

from tests.faults.fault_fleet import FaultFleet
from tests.faults.invariants import standing
from tests.fleet import eventually


def test_row_1_a_killed_scheduler_goes_on_where_it_was(tmp_path: Path) -> None:
    with FaultFleet(tmp_path).running() as fleet:
        fleet.simulate()
        (gateway,) = fleet.gateways
        with standing(fleet) as traffic:
            fleet.http.post("/v1/deployments", json={"name": "late", "model": "m", "engine": "sim"})
            gateway.kill()
            began = time.monotonic()
            fleet.start_gateway(gateway)
            eventually(lambda: gateway.routes_to("late"), 8)
            assert time.monotonic() - began < 8
            traffic.more()


def test_row_5_a_killed_gateway_costs_its_clients_no_answer(tmp_path: Path) -> None:
    with FaultFleet(tmp_path, gateways=2).running() as fleet:
        fleet.simulate()
        first, _ = fleet.gateways
        with standing(fleet) as traffic:
            first.kill()
            traffic.more()
            began = time.monotonic()
            fleet.start_gateway(first)
            eventually(lambda: first.routes_to("chat"), 2)
            assert time.monotonic() - began < 2
