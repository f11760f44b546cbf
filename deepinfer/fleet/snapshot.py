"""The whole fleet at one revision: what every decision is made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from pydantic import ValidationError

from deepinfer.fleet import keys
from deepinfer.fleet.resources import Deployment, Node, Placement, Refusal, ReplicaStatus, Resource

R = TypeVar("R", bound=Resource)


@dataclass(frozen=True)
class Snapshot:
    """Sorted by key, so that equal fleets are equal values."""

    deployments: tuple[Deployment, ...] = ()
    placements: tuple[Placement, ...] = ()
    nodes: tuple[Node, ...] = ()
    statuses: tuple[ReplicaStatus, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    unreadable: Mapping[str, str] = field(default_factory=dict)
    """Key -> why. Nothing may be concluded from the absence of an object that is merely unreadable."""

    def status_of(self, placement: Placement) -> ReplicaStatus | None:
        """The newest word on this very epoch."""
        for status in self.statuses:
            if status.id == placement.id and status.node == placement.node and status.epoch == placement.epoch:
                return status
        return None


def snapshot_of(entries: Mapping[str, bytes]) -> Snapshot:
    """Parse everything under /deepinfer/. A record that does not parse costs that record only."""
    unreadable: dict[str, str] = {}

    def parsed(prefix: str, kind: type[R]) -> tuple[R, ...]:
        found = []
        for key in sorted(k for k in entries if k.startswith(prefix)):
            try:
                found.append(kind.model_validate_json(entries[key]))
            except ValidationError as error:
                unreadable[key] = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        return tuple(found)

    return Snapshot(
        deployments=parsed(keys.DEPLOYMENTS, Deployment),
        placements=parsed(keys.PLACEMENTS, Placement),
        nodes=parsed(keys.NODES, Node),
        statuses=parsed(keys.STATUSES, ReplicaStatus),
        refusals=parsed(keys.REFUSALS, Refusal),
        unreadable=unreadable,
    )
