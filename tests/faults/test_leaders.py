"""Rows 2, 3 and 4: two `serve` on one etcd, and what happens to the one that leads."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deepinfer.fleet import keys
from tests.faults import etcd_reading
from tests.faults.fault_fleet import FaultFleet, stopped
from tests.faults.invariants import standing
from tests.fleet import eventually

TAKE_OVER_SECONDS = 5


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[FaultFleet]:
    with FaultFleet(tmp_path, gateways=2).running() as fleet:
        fleet.simulate()
        yield fleet


def leaders(fleet: FaultFleet) -> list[bytes]:
    """Everybody who led so far."""
    events = etcd_reading.history(fleet.etcd.endpoint)
    return [event.value for event in events if event.key == keys.LEADER and event.value is not None]


def test_row_2_a_killed_leader_is_followed_within_five_seconds(serving: FaultFleet) -> None:
    old = serving.leader()
    with standing(serving) as traffic:
        old.kill()
        killed = time.monotonic()
        heir = serving.leader(other_than=old)
        assert time.monotonic() - killed < TAKE_OVER_SECONDS
        heir.http.post("/v1/deployments", json={"name": "late", "model": "m", "engine": "sim"})
        eventually(lambda: heir.routes_to("late"), 10)
        traffic.more()
        serving.start_gateway(old)
    assert len(leaders(serving)) == 2


@pytest.mark.faults
def test_row_3_a_stale_leader_writes_nothing(serving: FaultFleet) -> None:
    """Stopped for 20 s, with a model to place that it heard of in the very moment, and more of them after it."""
    old = serving.leader()
    heir = next(gateway for gateway in serving.gateways if gateway is not old)
    with standing(serving):
        with stopped(old.pid):
            for number in range(3):
                heir.http.post("/v1/deployments", json={"name": f"late-{number}", "model": "m", "engine": "sim"})
            assert serving.leader(other_than=old) is heir
            eventually(lambda: heir.routes_to("late-2"), 10)
            for number in range(3):
                heir.http.delete(f"/v1/deployments/late-{number}")
            time.sleep(20)  # the fault itself
        eventually(lambda: old.routes_to("chat"), 10)
        assert [d.name for d in serving.now().deployments] == ["chat"]
    assert len(leaders(serving)) == 2
    assert serving.leader() is heir


@pytest.mark.faults
def test_row_4_a_leader_that_stalls_for_three_seconds_leads_on(serving: FaultFleet) -> None:
    """The worst moment is just before it would renew its lease, so it stalls at several."""
    leader = serving.leader()
    with standing(serving):
        for pause in (0.0, 0.3, 0.6):
            time.sleep(1 + pause)
            with stopped(leader.pid):
                time.sleep(3)  # the fault itself
    assert serving.leader() is leader
    assert len(leaders(serving)) == 1
