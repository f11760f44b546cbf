"""A node's state in one word. Pure."""

from __future__ import annotations

from deepinfer.control_plane.management.views import NodeState
from deepinfer.fleet.resources import Absence, Node, NodeSettings


def node_state(node: Node | None, settings: NodeSettings | None, absence: Absence | None) -> NodeState:
    """What matters most first: whether it is there, then what people and it itself decided."""
    if node is None:
        is_lost = (settings is not None and settings.lost) or (absence is not None and absence.lost)
        return "lost" if is_lost else "away"
    if node.leaving:
        return "leaving"
    if settings is not None and settings.drain:
        return "draining"
    if settings is not None and settings.cordoned:
        return "cordoned"
    return "under-pressure" if node.pressure else "ready"
