"""Which deployments only prefill, and which ones may have their prompts prefilled elsewhere. Pure.

The deployments' records say it, not the placements': a role is about routing, so that a change of it counts at once and
ends no engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from deepinfer.fleet import keys
from deepinfer.fleet.snapshot import Snapshot
from deepinfer.fleet.spec import DeploymentSpec, ReplicaRole

Likeness = tuple[str, str]
"""The model and the kind of engine: what two must have in common for one to take over what the other computed. The
rest (versions, data types, block sizes) engines look at themselves when they meet."""


@dataclass(frozen=True, slots=True)
class Roles:
    """By deployment; those of role `both` are not among them."""

    prefilling: Mapping[str, Likeness] = field(default_factory=dict)
    decoding: Mapping[str, Likeness] = field(default_factory=dict)


def roles_in(fleet: Snapshot, known: Roles) -> Roles:
    """What cannot be read is as it was known."""
    return Roles(
        _of(fleet, ReplicaRole.PREFILL, known.prefilling),
        _of(fleet, ReplicaRole.DECODE, known.decoding),
    )


def _of(fleet: Snapshot, role: ReplicaRole, known: Mapping[str, Likeness]) -> dict[str, Likeness]:
    kept = {name: like for name, like in known.items() if keys.deployment(name) in fleet.unreadable}
    read = {d.name: _likeness(d.spec) for d in fleet.deployments if d.spec.role is role}
    return kept | read


def _likeness(spec: DeploymentSpec) -> Likeness:
    return spec.model, spec.engine
