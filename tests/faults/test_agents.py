"""Rows 7 to 10: agents die, stay away and lose their leases, and no engine notices."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import psutil
import pytest

from deepinfer.fleet import keys
from deepinfer.fleet.resources import Intent
from tests.faults import etcd_reading
from tests.faults.fault_fleet import FaultFleet
from tests.faults.invariants import standing
from tests.faults.sightings import Sightings
from tests.fleet import eventually

ADOPTED_SECONDS = 3


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[FaultFleet]:
    with FaultFleet(tmp_path).running() as fleet:
        fleet.simulate()
        yield fleet


@pytest.mark.faults
def test_row_7_an_agent_killed_ten_times_finds_the_same_engine_ten_times(serving: FaultFleet) -> None:
    log = serving.home / "node-1.log"
    adopted_after = []
    with standing(serving) as traffic:
        for times in range(1, 11):
            serving.kill_worker()
            traffic.more(3)
            started = time.monotonic()
            serving.start_worker()
            eventually(lambda: log.read_text().count("adopted chat-") == times)  # noqa: B023  asked in this turn only
            adopted_after.append(time.monotonic() - started)
    assert median(adopted_after) < ADOPTED_SECONDS  # most of it is Python's start, late where others keep it busy
    assert not traffic.tally.tried_again


@pytest.mark.faults
@pytest.mark.parametrize("moment", ["early", "spawned"])
def test_row_8_an_agent_killed_while_it_starts_engines_starts_none_twice(serving: FaultFleet, moment: str) -> None:
    """Early: at moments between the wish and its engine. Spawned: as soon as there is a process, and no record yet."""
    with standing(serving), Sightings(serving.home) as sightings:
        for number, pause in enumerate((0.005, 0.01, 0.02, 0.04, 0.08, 0.16)):
            serving.deploy(name=f"late-{number}", model="m", engine="sim", device="cpu")
            if moment == "early":
                time.sleep(pause)
            else:
                eventually(
                    psutil.Process(serving.workers["node-1"].pid).children, 10
                )  # adopted ones are not among them
            serving.kill_worker()
            serving.start_worker()
        for number in range(6):
            serving.wait_ready(f"late-{number}", as_foreseen=False)
    assert len(sightings.pids) == 7
    assert [len(pids) for pids in sightings.pids.values()] == [1] * 7


def test_row_9_engines_of_an_agent_that_is_long_away_serve_on(serving: FaultFleet) -> None:
    """Away for as long as its lease and three times that, before it comes back."""
    with standing(serving) as traffic:
        serving.kill_worker()
        eventually(lambda: not serving.connected(), 6)
        assert serving.get("/v1/nodes")[0]["alive"] is False
        traffic.goes_on(6)
        serving.start_worker()
        eventually(serving.connected, 5)
        traffic.goes_on(1)
    assert not traffic.tally.tried_again


@pytest.mark.faults
def test_row_10_all_agents_lose_their_leases_at_once_and_nothing_moves(tmp_path: Path) -> None:
    """etcd stands still for as long as five leases, and no node is waited for longer than a second."""
    with FaultFleet(tmp_path, nodes=3, serve="node_grace_seconds = 1\n").running() as fleet:
        fleet.simulate(replicas=3)
        with standing(fleet) as traffic:
            fleet.etcd.pause()
            traffic.goes_on(10)
            fleet.etcd.resume()
            eventually(lambda: all(fleet.connected(node) for node in fleet.nodes), 10)
            traffic.goes_on(3)
        assert not traffic.tally.tried_again
        events = etcd_reading.history(fleet.etcd.endpoint)
        ended = {event.key for event in events if event.value is None}
        assert {keys.node(node) for node in fleet.nodes} <= ended, "the fault was too short to show anything"


@pytest.mark.faults
def test_row_10_two_of_three_nodes_that_die_together_are_not_replaced_before_a_person_says_so(tmp_path: Path) -> None:
    """Their agents and engines, so that nothing answers; everybody who looks is told what holds it and how to go on."""
    with FaultFleet(tmp_path, nodes=3, serve="node_grace_seconds = 3\n").running() as fleet:
        fleet.simulate(replicas=3)
        engines = {replica["node"]: replica["pid"] for replica in fleet.replicas("chat")}
        placed = fleet.now().placements
        with standing(fleet, breaks="chat") as traffic:
            for node in ("node-2", "node-3"):
                fleet.kill_worker(node)
                os.kill(engines[node], signal.SIGKILL)
            eventually(lambda: [bool(absence.held) for absence in fleet.now().absences] == [True, True], 15)
            traffic.goes_on(5)
            assert fleet.now().placements == placed
            for told in (fleet.command("get", "nodes").stdout, fleet.command("events").stdout):
                assert "2 of 3 nodes are away together" in told and "`deepinfer node lost NAME`" in told

            fleet.command("node", "lost", "node-2")
            eventually(lambda: serving_nodes(fleet) == ["node-1"] * 3, 10)
            fleet.routed_everywhere()
            traffic.more()
            for node in ("node-2", "node-3"):
                fleet.start_worker(node)
        assert engines["node-1"] in [replica["pid"] for replica in fleet.replicas("chat")]


def serving_nodes(fleet: FaultFleet) -> list[str]:
    return [placement.node for placement in fleet.now().placements if placement.intent is Intent.SERVE]


def test_row_21_an_agent_that_the_kernel_ends_is_as_one_that_is_killed(serving: FaultFleet) -> None:
    """Its own session only: whoever frees memory takes the agent, and the engines are in sessions of their own."""
    with standing(serving) as traffic:
        os.killpg(serving.workers["node-1"].pid, signal.SIGKILL)
        serving.workers["node-1"].wait()
        traffic.more()
        started = time.monotonic()
        serving.start_worker()
        eventually(serving.connected, 5)
        assert time.monotonic() - started < 5
