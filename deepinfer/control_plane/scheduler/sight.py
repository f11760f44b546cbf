"""A snapshot, looked up the way the scheduler asks: what is known of a node, and what may be concluded from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from deepinfer.fleet import keys
from deepinfer.fleet.resources import Deployment, Node, Phase, Placement
from deepinfer.fleet.snapshot import Snapshot


@dataclass(frozen=True)
class Sight:
    """Questions about one snapshot; each table is built once."""

    fleet: Snapshot

    @cached_property
    def deployments(self) -> Mapping[str, Deployment]:
        return {deployment.name: deployment for deployment in self.fleet.deployments}

    @cached_property
    def verified(self) -> Mapping[str, Node]:
        """The nodes of which everything is known: alive, and all their placements readable."""
        return {node.name: node for node in self.fleet.nodes if node.name not in self.unreadable_on}

    @cached_property
    def unreadable_on(self) -> Mapping[str, str]:
        """Node -> the key of a placement on it that cannot be read, so that its devices are unknown."""
        return {key.split("/")[0]: f"{keys.PLACEMENTS}{key}" for key in self._unreadable(keys.PLACEMENTS)}

    @cached_property
    def unreadable_ids(self) -> frozenset[str]:
        """Placement ids that exist somewhere, whatever their records say."""
        return frozenset(key.partition("/")[2] for key in self._unreadable(keys.PLACEMENTS))

    @cached_property
    def unreadable_deployments(self) -> frozenset[str]:
        return frozenset(self._unreadable(keys.DEPLOYMENTS))

    @cached_property
    def unreadable_nodes(self) -> frozenset[str]:
        return frozenset(self._unreadable(keys.NODES))

    def is_gone(self, placement: Placement) -> bool:
        """Whether nothing of it runs: its agent was here, or never was, and tells no status of it in any epoch."""
        if (placement.node, placement.id) in self._told:
            return False
        return placement.node in self._alive or placement.node not in self._nodes_that_told

    def has_stopped(self, placement: Placement) -> bool:
        """Whether its agent ended it before leaving: the one thing that is certain of a node that is not there."""
        status = self.fleet.status_of(placement)
        return placement.node not in self._alive and status is not None and status.phase is Phase.STOPPED

    @cached_property
    def _alive(self) -> frozenset[str]:
        return frozenset(node.name for node in self.fleet.nodes)

    @cached_property
    def _told(self) -> frozenset[tuple[str, str]]:
        """Statuses by node and placement; an unreadable one is one."""
        readable = {(status.node, status.id) for status in self.fleet.statuses}
        parts = (key.partition("/") for key in self._unreadable(keys.STATUSES))
        return frozenset(readable | {(node, placement) for node, _, placement in parts})

    @cached_property
    def _nodes_that_told(self) -> frozenset[str]:
        return frozenset(node for node, _ in self._told) | self.unreadable_nodes

    def _unreadable(self, prefix: str) -> Iterable[str]:
        return [key.removeprefix(prefix) for key in sorted(self.fleet.unreadable) if key.startswith(prefix)]
