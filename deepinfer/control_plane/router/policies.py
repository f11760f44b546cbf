"""By which policy requests find each engine, and whether what its KV cache holds makes a difference to that."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from deepinfer.control_plane.router.connection import Connection
from deepinfer.fleet.snapshot import Snapshot
from deepinfer.fleet.spec import RoutingPolicy


def take_policies(
    connections: Iterable[Connection], fleet: Snapshot, by_name: Mapping[str, Sequence[Connection]]
) -> None:
    """An engine is watched anew where other contents are wanted of it than before."""
    policies = {deployment.name: deployment.spec.routing for deployment in fleet.deployments}
    for connection in connections:
        connection.policy = policies.get(connection.deployment, connection.policy)
        wants = _wants_contents(connection, by_name)
        if wants != connection.wants_contents:
            connection.wants_contents = wants
            connection.watch_anew()


def _wants_contents(connection: Connection, by_name: Mapping[str, Sequence[Connection]]) -> bool:
    """There must be a choice, and it must be by that."""
    if connection.policy is not RoutingPolicy.KV:
        return False
    names = (connection.deployment, *connection.route.names)
    return any(len(by_name.get(name, ())) > 1 for name in names)
