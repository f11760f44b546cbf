"""Which engines the router should be connected to. Pure: from the fleet's snapshot and what was known before.

Static stability: what the store no longer says (a status that vanished, a record that does not parse) is not news, so
the last endpoint stays. What it does say counts at once: a newer epoch, another endpoint, an intent to drain.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from deepinfer.fleet import keys
from deepinfer.fleet.pipeline import deployment_served
from deepinfer.fleet.resources import Intent, Placement
from deepinfer.fleet.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class Route:
    """Where one epoch of a placement can be reached. Another endpoint or epoch is another engine."""

    placement: str
    epoch: int
    node: str
    endpoint: str
    deployment: str
    names: frozenset[str]  # that a request's "model" may use: the deployment's, and its model's


def wanted_routes(fleet: Snapshot, known: Mapping[str, Route]) -> dict[str, Route]:
    """Placement id -> its route, for each that should serve and whose endpoint is known."""
    newest = newest_epochs(fleet)
    heads = {(layout.head, layout.head_epoch): layout.id for layout in fleet.layouts}
    routes = {}
    for placement in newest.values():
        if placement.spec.pipeline is not None and not _heads(placement, fleet, heads):
            continue
        endpoint = _endpoint(placement, fleet, known.get(placement.id))
        if placement.intent is Intent.SERVE and endpoint is not None:
            deployment = deployment_served(placement.deployment)
            names = frozenset((deployment, placement.spec.model))
            routes[placement.id] = Route(placement.id, placement.epoch, placement.node, endpoint, deployment, names)
    for key in fleet.unreadable:
        placement_id = key.rpartition("/")[2]
        if key.startswith(keys.PLACEMENTS) and placement_id in known and placement_id not in newest:
            routes[placement_id] = known[placement_id]
    return routes


def _heads(placement: Placement, fleet: Snapshot, heads: Mapping[tuple[str, int], str]) -> bool:
    """Of a replica in stages, requests go to the process that is its head and says so."""
    replica, status = heads.get((placement.id, placement.epoch)), fleet.status_of(placement)
    return (
        replica is not None and status is not None and status.pipeline is not None and status.pipeline.serves == replica
    )


def newest_epochs(fleet: Snapshot) -> dict[str, Placement]:
    """Placement id -> its newest epoch: an older one is void, wherever it may still run."""
    newest: dict[str, Placement] = {}
    for placement in fleet.placements:
        if placement.id not in newest or newest[placement.id].epoch < placement.epoch:
            newest[placement.id] = placement
    return newest


def _endpoint(placement: Placement, fleet: Snapshot, known: Route | None) -> str | None:
    status = fleet.status_of(placement)
    if status is not None and status.endpoint is not None:
        return status.endpoint
    if known is not None and (known.epoch, known.node) == (placement.epoch, placement.node):
        return known.endpoint
    return None
