"""Where things lie in etcd, and who writes each. `etcdctl get --prefix /deepinfer/` shows all of it, as JSON."""

from __future__ import annotations

FLEET = "/deepinfer/"
DEPLOYMENTS = f"{FLEET}deployments/"
PLACEMENTS = f"{FLEET}placements/"
NODES = f"{FLEET}nodes/"
STATUSES = f"{FLEET}statuses/"
REFUSALS = f"{FLEET}refusals/"
LEADER = f"{FLEET}leader"
"""Written by whoever leads the control plane, under its lease."""


def deployment(name: str) -> str:
    """Written by the management API."""
    return f"{DEPLOYMENTS}{name}"


def placement(node: str, placement_id: str) -> str:
    """Written by the control plane's leader."""
    return f"{PLACEMENTS}{node}/{placement_id}"


def refusal(deployment_name: str) -> str:
    """Written by the control plane's leader."""
    return f"{REFUSALS}{deployment_name}"


def node(name: str) -> str:
    """Written by the node's agent, under its lease: no key means "unverified", not "dead"."""
    return f"{NODES}{name}"


def status(node_name: str, placement_id: str) -> str:
    """Written by the agent of the node."""
    return f"{STATUSES}{node_name}/{placement_id}"
