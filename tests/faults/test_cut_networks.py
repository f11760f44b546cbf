"""Rows 40 and 66: the network between a gateway and an engine, and between a node and everybody, is cut."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deepinfer.fleet.resources import Intent
from tests.faults.fault_fleet import FaultFleet
from tests.faults.invariants import standing
from tests.faults.private_network import ports_of, private_network, silenced
from tests.fleet import eventually

GATEWAY, NODE = 47110, 47111
"""Groups: one gateway, and one node with all its engines."""
ROUTED_OUT_SECONDS = 3.5
"""The kernel tells it after three; the rest is what it takes to look."""


@pytest.fixture
def network() -> Iterator[None]:
    with private_network():
        yield


@pytest.mark.usefixtures("network")
def test_row_40_a_gateway_that_cannot_reach_an_engine_uses_the_others(tmp_path: Path) -> None:
    with FaultFleet(tmp_path, gateways=2, nodes=2).running() as fleet:
        cut_off, other = fleet.gateways
        cut_off.kill()
        fleet.start_gateway(cut_off, group=GATEWAY)
        fleet.simulate(replicas=2)
        engine = next(replica for replica in fleet.replicas("chat") if replica["node"] == "node-1")
        with standing(fleet) as traffic:
            with silenced(GATEWAY, ports_of(engine["pid"])):
                eventually(lambda: cut_off.routes_to("chat") == 1, 6)
                traffic.goes_on(2)
                assert (cut_off.routes_to("chat"), other.routes_to("chat")) == (1, 2)
            eventually(lambda: cut_off.routes_to("chat") == 2, 15)


@pytest.mark.usefixtures("network")
def test_row_66_a_node_that_vanished_is_not_routed_to(tmp_path: Path) -> None:
    with FaultFleet(tmp_path, nodes=1).running() as fleet:
        fleet.start_worker("node-2", group=NODE)
        fleet.simulate(replicas=2)
        (gateway,) = fleet.gateways
        with standing(fleet) as traffic:
            with silenced(NODE):
                vanished = time.monotonic()
                eventually(lambda: gateway.routes_to("chat") == 1, ROUTED_OUT_SECONDS)
                print(f"row 66: routed out after {time.monotonic() - vanished:.1f} s")
                assert time.monotonic() - vanished < 4
                traffic.goes_on(4)
            eventually(lambda: gateway.routes_to("chat") == 2, 15)


@pytest.mark.faults
@pytest.mark.usefixtures("network")
def test_row_66_what_ran_on_a_vanished_node_is_placed_elsewhere_and_ended_when_it_returns(tmp_path: Path) -> None:
    """With a grace of 4 s instead of 60."""
    with FaultFleet(tmp_path, nodes=2, serve="node_grace_seconds = 4\n").running() as fleet:
        fleet.start_worker("node-3", group=NODE)
        fleet.simulate(replicas=3)
        with standing(fleet, breaks="chat"):
            with silenced(NODE):
                vanished = time.monotonic()
                eventually(lambda: len(elsewhere(fleet, "node-3")) == 3, 20)
                print(f"row 66: placed elsewhere after {time.monotonic() - vanished:.1f} s")
                fleet.routed_everywhere()
                assert [p.why for p in fleet.now().placements if p.node == "node-3"] == ["node node-3 is lost"]
            eventually(lambda: not [p for p in fleet.now().placements if p.node == "node-3"], 30)


def elsewhere(fleet: FaultFleet, node: str) -> list[str]:
    """The placements that serve on other nodes."""
    return [p.id for p in fleet.now().placements if p.intent is Intent.SERVE and p.node != node]
