"""How requests for one name are split: over an alias's deployments, and over a rollout's generations. Pure.

The share of each comes from a turn's position between 0 and 1. Turns are spread by the golden ratio, so that any few
of them in a row, and every second or tenth one too, come as near to the wanted shares as they can.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from deepinfer.control_plane.router.candidate import S
from deepinfer.control_plane.router.routes import newest_epochs
from deepinfer.control_plane.scheduler.fit import same_engine
from deepinfer.fleet.rollout import Outcome
from deepinfer.fleet.snapshot import Snapshot

T = TypeVar("T")
_GOLDEN = 0x9E3779B97F4A7C15  # 2**64 divided by the golden ratio


@dataclass(frozen=True, slots=True)
class NewGeneration:
    """Of a deployment that is being rolled out: which replicas are of it, and what they are to get."""

    percent: int
    wanted: int  # replicas, once it is complete
    placements: frozenset[str]


@dataclass(frozen=True, slots=True)
class Split:
    """One request's turn."""

    turn: int
    weights: Mapping[str, int] = field(default_factory=dict)  # deployment -> weight; empty: the name is no alias
    rolling: Mapping[str, NewGeneration] = field(default_factory=dict)  # by deployment

    def narrowed(self, candidates: Sequence[S]) -> Sequence[S]:
        """Those whose turn it is. Who has no candidate gets no turn, and the others share it."""
        position = (self.turn * _GOLDEN % 2**64 >> 11) / 2**53
        deployments = sorted({candidate.deployment for candidate in candidates})
        if self.weights and len(deployments) > 1:
            chosen, position = picked([(name, self.weights.get(name, 0)) for name in deployments], position)
            candidates = [candidate for candidate in candidates if candidate.deployment == chosen]
            deployments = [chosen]
        if len(deployments) == 1 and deployments[0] in self.rolling:
            return _of_one_generation(candidates, self.rolling[deployments[0]], position)
        return candidates


def rolling(fleet: Snapshot) -> dict[str, NewGeneration]:
    """The deployments that ask for a share of their newest generation; not those where it was given up."""
    given_up = {(r.deployment, r.generation) for r in fleet.rollouts if r.outcome is Outcome.ROLLED_BACK}
    asking = {
        deployment.name: deployment.spec
        for deployment in fleet.deployments
        if deployment.spec.rollout.new_generation_percent is not None
        and (deployment.name, deployment.generation) not in given_up
    }
    newest: dict[str, set[str]] = {name: set() for name in asking}
    for placement in newest_epochs(fleet).values() if asking else ():
        if placement.deployment in asking and same_engine(placement.spec, asking[placement.deployment]):
            newest[placement.deployment].add(placement.id)
    return {
        name: NewGeneration(spec.rollout.new_generation_percent or 0, spec.replicas, frozenset(newest[name]))
        for name, spec in asking.items()
    }


def picked(weights: Sequence[tuple[T, int]], position: float) -> tuple[T, float]:
    """The one whose part of the whole the position falls in, and where in that part: a position as good as the first
    one for a second choice."""
    at = position * sum(weight for _, weight in weights)
    for one, weight in weights:
        if at < weight:
            return one, at / weight
        at -= weight
    return weights[-1][0], 0.0


def _of_one_generation(candidates: Sequence[S], new: NewGeneration, position: float) -> Sequence[S]:
    newer = [candidate for candidate in candidates if candidate.placement in new.placements]
    older = [candidate for candidate in candidates if candidate.placement not in new.placements]
    if not newer or not older:
        return candidates
    # Towards its end fewer old ones are left than there were: none of them is to get more than it had.
    percent = max(new.percent, 100 - 100 * len(older) // max(1, new.wanted))
    chosen, _ = picked([(newer, percent), (older, 100 - percent)], position)
    return chosen
