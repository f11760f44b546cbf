"""Whether a node may take a new replica at all, before its devices are looked at. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from deepinfer.control_plane.scheduler.sight import Sight, missing_label
from deepinfer.fleet import keys
from deepinfer.fleet.resources import Deployment, Node


def ineligible(deployment: Deployment, node: Node, beside: Iterable[str], sight: Sight) -> str:
    """Why not, in words that follow the node's name; empty if it may. `beside`: the deployments that run there."""
    settings = sight.settings.get(node.name)
    if node.name in sight.unreadable_on:
        return f"{sight.unreadable_on[node.name]} cannot be read, so its free devices are unknown"
    if node.name in sight.unreadable_settings:
        odd = keys.node_settings(node.name)
        return f"may be cordoned: {odd} cannot be read; `deepinfer cordon {node.name}` replaces it"
    if settings is not None and settings.drain:
        return f"is drained; `deepinfer uncordon {node.name}` lets it take replicas again"
    if settings is not None and settings.cordoned:
        return f"is cordoned; `deepinfer uncordon {node.name}` lets it take replicas again"
    return (
        starts_nothing(node)
        or missing_label(deployment.spec.node_selector, node)
        or _not_beside(deployment, beside, sight)
    )


def starts_nothing(node: Node) -> str:
    """Why its agent would not start an engine now, be it in the place of another; empty if it would."""
    if node.leaving:
        return "is leaving"
    if node.fleet_trouble:
        return f"goes by another store: {node.fleet_trouble}"
    return f"takes nothing new: {'; '.join(node.pressure)}" if node.pressure else ""


def _not_beside(deployment: Deployment, beside: Iterable[str], sight: Sight) -> str:
    """Either side may refuse the other."""
    for name in sorted(beside):
        other = sight.deployments.get(name)
        if name in deployment.spec.anti_affinity or (other and deployment.name in other.spec.anti_affinity):
            return f"runs {name}, which {deployment.name} must not share a node with"
    return ""
