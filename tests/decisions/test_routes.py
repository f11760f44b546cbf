"""Where the router connects to: what the store says counts, what it no longer says does not."""

from __future__ import annotations

from typing import Any

import pytest

from deepinfer.control_plane.router.readiness import deployments_by_name, waits_for
from deepinfer.control_plane.router.routes import Route, wanted_routes
from deepinfer.fleet import keys
from deepinfer.fleet.resources import Intent, Phase, Refusal
from deepinfer.fleet.snapshot import Snapshot
from tests.fleet_values import deployment, placement, status

ID = "chat-aaaaa-0"
KNOWN = {ID: Route(ID, 2, "node-1", "127.0.0.1:4711", "chat", frozenset({"chat", "org/model"}))}


def test_a_placement_with_an_endpoint_is_a_route_under_both_its_names() -> None:
    fleet = Snapshot(placements=(placement(epoch=2),), statuses=(status(epoch=2, endpoint="127.0.0.1:4711"),))
    assert wanted_routes(fleet, {}) == KNOWN


@pytest.mark.parametrize(
    "fleet",
    [
        Snapshot(placements=(placement(epoch=2),)),
        Snapshot(placements=(placement(epoch=2),), statuses=(status(epoch=2, endpoint=None),)),
        Snapshot(placements=(placement(epoch=2),), statuses=(status(epoch=1, endpoint="127.0.0.1:1"),)),
        Snapshot(unreadable={keys.placement("node-1", ID): "not JSON"}),
        Snapshot(placements=(placement(epoch=1), placement(epoch=2, node="node-1"))),
    ],
    ids=["status vanished", "status without endpoint", "status of an older epoch", "unreadable", "older epoch too"],
)
def test_what_the_store_no_longer_says_changes_nothing(fleet: Snapshot) -> None:
    assert wanted_routes(fleet, KNOWN) == KNOWN


@pytest.mark.parametrize(
    "fleet",
    [
        Snapshot(),
        Snapshot(placements=(placement(epoch=2, intent=Intent.DRAIN),)),
        Snapshot(placements=(placement(epoch=3),)),
        Snapshot(placements=(placement(epoch=2), placement(epoch=3, node="node-2"))),
        Snapshot(
            placements=(placement(epoch=3, intent=Intent.DRAIN),),
            unreadable={keys.placement("node-2", ID): "not JSON"},
        ),
    ],
    ids=["placement gone", "draining", "newer epoch", "newer epoch elsewhere", "unreadable but newer known"],
)
def test_what_the_store_says_counts_at_once(fleet: Snapshot) -> None:
    assert wanted_routes(fleet, KNOWN) == {}


def test_a_new_endpoint_replaces_the_old_one() -> None:
    fleet = Snapshot(placements=(placement(epoch=2),), statuses=(status(epoch=2, endpoint="127.0.0.1:5"),))
    assert wanted_routes(fleet, KNOWN)[ID].endpoint == "127.0.0.1:5"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "its replicas have no place on a node yet"),
        ({"deployments": (deployment(replicas=0),)}, "it has 0 replicas; scale it up"),
        (
            {"refusals": (Refusal(deployment="chat", missing=1, reasons={"node-1": "no GPU is free."}),)},
            "no place on node-1: no GPU is free",
        ),
        ({"placements": (placement(),)}, "chat-aaaaa-0 on node-1 waits for its node's agent"),
        (
            {"placements": (placement(),), "statuses": (status(phase=Phase.STARTING, message="loading 3 of 4"),)},
            "chat-aaaaa-0 on node-1 is starting: loading 3 of 4",
        ),
        (
            {"placements": (placement(),), "statuses": (status(phase=Phase.READY),)},
            "chat-aaaaa-0 on node-1 was ready but cannot be used now: connection refused",
        ),
    ],
)
def test_what_a_model_waits_for_is_said(fields: dict[str, Any], words: str) -> None:
    fleet = Snapshot(**{"deployments": (deployment(),), **fields})
    deployments = deployments_by_name(fleet)["org/model"]
    assert waits_for(deployments, fleet, {ID: "connection refused"}) == words
