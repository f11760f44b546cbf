"""Rows 63 and 65: everything about a deployment changes while clients ask, and no client notices."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from deepinfer.fleet.rollout import Outcome
from tests.faults.fault_fleet import FaultFleet
from tests.faults.invariants import standing
from tests.fleet import eventually, routed


def generations(fleet: FaultFleet) -> list[int]:
    """Of the replicas that serve."""
    return sorted(p.generation for p in fleet.now().placements if p.intent == "serve")


def patch(fleet: FaultFleet, **spec: Any) -> int:
    """The new generation."""
    generation: int = fleet.http.patch("/v1/deployments/chat", json=spec).raise_for_status().json()["generation"]
    return generation


def test_row_63_a_hot_swap_costs_no_request(tmp_path: Path) -> None:
    with FaultFleet(tmp_path, gateways=2).running() as fleet:
        fleet.simulate()
        with standing(fleet, breaks="chat") as traffic:
            generation = patch(fleet, max_model_len=4096)
            eventually(lambda: generations(fleet) == [generation], 30)
            fleet.routed_everywhere()
            traffic.more()
        assert not traffic.tally.tried_again, traffic.tally.tried_again


def test_a_model_is_swapped_for_another_one_and_no_request_is_lost(tmp_path: Path) -> None:
    with FaultFleet(tmp_path).running() as fleet:
        fleet.simulate()
        with standing(fleet, breaks="chat") as traffic:
            asked = {"from": "chat", "to": "sim/other", "wait_seconds": 60}
            swapped = fleet.http.post("/api/models/hot-swap", json=asked)
            assert (swapped.status_code, swapped.json()["model"]) == (200, "sim/other"), swapped.text
            assert routed(fleet.http, "chat") >= 1
            traffic.more()
            eventually(lambda: [r["generation"] for r in fleet.replicas("chat")] == [2], 30)
            traffic.more()
        assert not traffic.tally.tried_again, traffic.tally.tried_again


@pytest.mark.faults
def test_row_63_without_room_beside_it_each_replica_is_renewed_in_its_turn(tmp_path: Path) -> None:
    with FaultFleet(tmp_path, worker="simulated_devices = 2\n").running() as fleet:
        fleet.simulate(replicas=2, device="auto")
        assert {replica["devices"][0] for replica in fleet.replicas("chat")} == {"sim:0", "sim:1"}
        with standing(fleet, breaks="chat"):
            generation = patch(fleet, max_model_len=4096)
            eventually(lambda: generations(fleet) == [generation] * 2, 60)
            fleet.routed_everywhere()


def test_a_generation_whose_engine_will_not_start_is_rolled_back_while_the_good_one_serves(tmp_path: Path) -> None:
    with FaultFleet(tmp_path).running() as fleet:
        fleet.simulate()
        good = eventually(lambda: [r for r in fleet.now().rollouts if r.outcome is Outcome.COMPLETE])[0]
        with standing(fleet) as traffic:
            bad = patch(fleet, env={"PYTHONHOME": "/nowhere"})
            rollout = eventually(lambda: [r for r in fleet.now().rollouts if r.outcome is Outcome.ROLLED_BACK], 60)[0]
            assert (rollout.generation, rollout.good and rollout.good.generation) == (bad, good.generation)
            assert "failed 3 times in a row" in rollout.reason
            eventually(lambda: [p.generation for p in fleet.now().placements] == [good.generation], 30)
            traffic.more()
        assert not traffic.tally.tried_again, traffic.tally.tried_again


@pytest.mark.faults
def test_row_65_a_node_that_is_told_to_leave_is_replaced_first(tmp_path: Path) -> None:
    with FaultFleet(tmp_path, nodes=2, worker="drain_on_stop = true\n").running() as fleet:
        fleet.simulate(replicas=2)
        assert {replica["node"] for replica in fleet.replicas("chat")} == {"node-1", "node-2"}
        with standing(fleet, breaks="chat") as traffic:
            leaving = fleet.workers.pop("node-2")
            leaving.send_signal(signal.SIGTERM)
            assert leaving.wait(60) == 0
            assert {replica["node"] for replica in fleet.replicas("chat")} == {"node-1"}
            fleet.routed_everywhere()
        assert not traffic.tally.tried_again, traffic.tally.tried_again


@pytest.mark.faults
def test_row_65_a_node_that_a_person_drains_is_emptied_only_as_its_replicas_are_replaced(tmp_path: Path) -> None:
    with FaultFleet(tmp_path, nodes=2).running() as fleet:
        fleet.simulate(replicas=2)
        assert {replica["node"] for replica in fleet.replicas("chat")} == {"node-1", "node-2"}
        with standing(fleet, breaks="chat") as traffic:
            assert fleet.command("drain", "node-2").stdout == "node-2 is drained\n"
            assert {replica["node"] for replica in fleet.replicas("chat")} == {"node-1"}
            fleet.routed_everywhere()
            traffic.more()
        assert not traffic.tally.tried_again, traffic.tally.tried_again


@pytest.mark.faults
def test_row_9_an_engine_that_answers_is_not_replaced_however_long_its_agent_is_away(tmp_path: Path) -> None:
    with FaultFleet(tmp_path, nodes=3, serve="node_grace_seconds = 2\n").running() as fleet:
        fleet.simulate(replicas=3)
        with standing(fleet) as traffic:
            fleet.kill_worker("node-3")
            eventually(lambda: any(absence.lost for absence in fleet.now().absences), 20)
            traffic.goes_on(3)
            fleet.start_worker("node-3")
            eventually(lambda: not fleet.now().absences, 15)
        assert not traffic.tally.tried_again, traffic.tally.tried_again
