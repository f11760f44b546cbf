"""Where things lie in etcd, and who writes each. `etcdctl get --prefix /deepinfer/` shows all of it, as JSON."""

from __future__ import annotations

FLEET = "/deepinfer/"
DEPLOYMENTS = f"{FLEET}deployments/"
PLACEMENTS = f"{FLEET}placements/"
NODES = f"{FLEET}nodes/"
STATUSES = f"{FLEET}statuses/"
REFUSALS = f"{FLEET}refusals/"
NODE_SETTINGS = f"{FLEET}node_settings/"
REVISIONS = f"{FLEET}revisions/"
ROLLOUTS = f"{FLEET}rollouts/"
CONDITIONS = f"{FLEET}conditions/"
ABSENCES = f"{FLEET}absences/"
MOVES = f"{FLEET}moves/"
LAYOUTS = f"{FLEET}layouts/"
API_KEYS = f"{FLEET}api_keys/"
ALIASES = f"{FLEET}aliases/"
EVENTS = "/deepinfer-events/"
"""Beside the fleet: who follows the fleet is not woken by what is only told to people."""
USAGE = "/deepinfer-usage/"
"""Beside the fleet for the same reason."""
IDENTITY = f"{FLEET}fleet"
"""Which fleet this store holds. Written once by the first control plane, and by whoever confirms a new store."""
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


def statuses(node_name: str) -> str:
    """All of one node lie below this."""
    return f"{STATUSES}{node_name}/"


def status(node_name: str, placement_id: str) -> str:
    """Written by the agent of the node."""
    return f"{statuses(node_name)}{placement_id}"


def node_settings(node_name: str) -> str:
    """Written by the management API."""
    return f"{NODE_SETTINGS}{node_name}"


def revisions(deployment_name: str) -> str:
    """All of one deployment lie below this."""
    return f"{REVISIONS}{deployment_name}/"


def revision(deployment_name: str, generation: int) -> str:
    """Written by the management API, with the deployment."""
    return f"{revisions(deployment_name)}{generation:08d}"


def events(about: str) -> str:
    """All of one object lie below this."""
    return f"{EVENTS}{about}/"


def rollout(deployment_name: str) -> str:
    """Written by the control plane's leader."""
    return f"{ROLLOUTS}{deployment_name}"


def conditions(deployment_name: str) -> str:
    """Written by the control plane's leader."""
    return f"{CONDITIONS}{deployment_name}"


def absence(node_name: str) -> str:
    """Written by the control plane's leader."""
    return f"{ABSENCES}{node_name}"


def move(placement_id: str) -> str:
    """Written by the management API."""
    return f"{MOVES}{placement_id}"


def layout(placement_id: str) -> str:
    """Written by the control plane's leader."""
    return f"{LAYOUTS}{placement_id}"


def usage(gateway: str) -> str:
    """Written by the gateway, under its lease: what limited API keys have used there."""
    return f"{USAGE}{gateway}"


def api_key(key_id: str) -> str:
    """Written by the management API."""
    return f"{API_KEYS}{key_id}"


def alias(name: str) -> str:
    """Written by the management API."""
    return f"{ALIASES}{name}"


def event(about: str, identifier: str) -> str:
    """Written by the control plane's leader, under a lease of about an hour."""
    return f"{events(about)}{identifier}"
