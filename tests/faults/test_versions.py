"""Row 62: this version and the next one run beside each other, and take over from each other, while clients ask."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psutil
import pytest

from deepinfer.fleet import keys
from tests.faults import etcd_reading
from tests.faults.fault_fleet import FaultFleet, Gateway
from tests.faults.invariants import standing
from tests.faults.next_version import FIELD, PLAIN, VERSION, next_version
from tests.fleet import eventually

pytestmark = pytest.mark.faults

LOUD = {FIELD: "loud"}
SIM = {"model": "m", "engine": "sim", "device": "cpu"}


@pytest.fixture(scope="module")
def newer(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return next_version(tmp_path_factory.mktemp("newer"))


def record(fleet: FaultFleet, key: str) -> Any:
    """As it lies in etcd, whatever this version knows of it."""
    return json.loads(etcd_reading.values(fleet.etcd.endpoint)[key])


def placed(fleet: FaultFleet, deployment: str) -> list[Any]:
    found = etcd_reading.values(fleet.etcd.endpoint, keys.PLACEMENTS).values()
    return [placement for placement in map(json.loads, found) if placement["deployment"] == deployment]


def engines(fleet: FaultFleet, deployment: str) -> dict[str, int]:
    """Replica -> the process it runs in."""
    return {replica["id"]: replica["pid"] for replica in fleet.replicas(deployment)}


def replaced(fleet: FaultFleet, gateway: Gateway, version: dict[str, str] | None = None) -> None:
    """As an upgrade does it: it is asked to end, and another one takes its place."""
    assert gateway.process is not None
    gateway.process.terminate()
    assert gateway.process.wait(30) == 0
    fleet.start_gateway(gateway, more=version or {})


def replaced_worker(fleet: FaultFleet, node: str, version: dict[str, str]) -> None:
    fleet.workers[node].terminate()
    assert fleet.workers[node].wait(30) == 0
    fleet.start_worker(node, more=version)
    eventually(lambda: record(fleet, keys.node(node))["version"] == VERSION, 10)


def test_row_62_a_newer_serve_and_an_older_one_lead_in_turn(tmp_path: Path, newer: dict[str, str]) -> None:
    """Either decides on what the other placed, and amends what the other's user asked for; no engine is replaced."""
    with FaultFleet(tmp_path, gateways=2).running() as fleet:
        fleet.simulate()
        old, new = fleet.gateways
        with standing(fleet) as traffic:
            replaced(fleet, new, newer)
            replaced(fleet, old)
            assert fleet.leader() is new
            new.http.post("/v1/deployments", json={"name": "loud", **SIM, **LOUD, "rollout": LOUD}).raise_for_status()
            old.http.post("/v1/deployments", json={"name": "quiet", **SIM}).raise_for_status()
            new.http.patch("/v1/deployments/chat", json={"priority": 1}).raise_for_status()
            for name in ("loud", "quiet"):
                fleet.routed_everywhere(name)
            (loud,), (quiet,) = placed(fleet, "loud"), placed(fleet, "quiet")
            assert (loud[FIELD], loud["spec"][FIELD], quiet["spec"][FIELD]) == (PLAIN, "loud", PLAIN)
            before = engines(fleet, "loud") | engines(fleet, "quiet")
            replaced(fleet, new, newer)
            assert fleet.leader() is old
            assert old.http.post("/v1/deployments", json={"name": "x", **SIM, **LOUD}).status_code == 400
            for name in ("loud", "quiet"):
                old.http.patch(f"/v1/deployments/{name}", json={"replicas": 2}).raise_for_status()
                fleet.routed_everywhere(name)
            traffic.more()
        spec = record(fleet, keys.deployment("loud"))["spec"]
        assert (spec[FIELD], spec["rollout"][FIELD], spec["replicas"]) == ("loud", "loud", 2)
        after = engines(fleet, "loud") | engines(fleet, "quiet")
        assert len(after) == 4
        assert {replica: after.get(replica) for replica in before} == before


def test_row_62_a_newer_worker_serves_under_an_older_serve(tmp_path: Path, newer: dict[str, str]) -> None:
    with FaultFleet(tmp_path).running() as fleet:
        fleet.start_worker("node-2", more=newer)
        fleet.nodes.append("node-2")
        fleet.simulate(replicas=2)
        told = {replica["node"]: replica for replica in fleet.replicas("chat")}
        assert set(told) == {"node-1", "node-2"}
        assert psutil.Process(told["node-2"]["pid"]).environ()["PYTHONPATH"] == newer["PYTHONPATH"]
        assert record(fleet, keys.status("node-2", told["node-2"]["id"]))[FIELD] == PLAIN
        with standing(fleet) as traffic:
            fleet.deploy(name="late", **SIM, replicas=2)
            assert {replica["node"] for replica in fleet.wait_ready("late")} == {"node-1", "node-2"}
            fleet.kill_worker("node-2")
            fleet.start_worker("node-2", more=newer)
            replaced(fleet, fleet.gateways[0])
            fleet.routed_everywhere()
            traffic.more()
        assert {node["name"]: node["version"] == VERSION for node in fleet.get("/v1/nodes")} == {
            "node-1": False,
            "node-2": True,
        }


def test_row_62_everything_is_upgraded_one_after_the_other(tmp_path: Path, newer: dict[str, str]) -> None:
    """Engines run on as they were started; what comes after them is of the next version."""
    with FaultFleet(tmp_path, gateways=2, nodes=2).running() as fleet:
        fleet.simulate(replicas=2)
        with standing(fleet) as traffic:
            for gateway in fleet.gateways:
                replaced(fleet, gateway, newer)
                fleet.routed_everywhere()
                traffic.more()
            for node in fleet.nodes:
                replaced_worker(fleet, node, newer)
                traffic.more()
            fleet.deploy(name="late", **SIM, **LOUD)
            (late,) = fleet.wait_ready("late")
            assert psutil.Process(late["pid"]).environ()["PYTHONPATH"] == newer["PYTHONPATH"]
        assert record(fleet, keys.status(late["node"], late["id"]))[FIELD] == PLAIN
