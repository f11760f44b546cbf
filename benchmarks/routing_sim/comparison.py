"""One seed of one cell: all policies on the same trace. What a process of its own computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from benchmarks.routing_sim.figures import Figures, figures_of
from benchmarks.routing_sim.fleets import Fleet
from benchmarks.routing_sim.policies import POLICIES
from benchmarks.routing_sim.replay import replay
from benchmarks.routing_sim.trace import Demand
from benchmarks.routing_sim.traces import KINDS, Kind
from benchmarks.routing_sim.virtual_time import run

_UTILISATION: Final = 0.75
"""Of the fleet's prefill rate, where a good router leaves no more than a trace's `work` to do."""
_REQUESTS: Final = {8: 1_600, 16: 2_400, 64: 4_800}


@dataclass(frozen=True, slots=True)
class Comparison:
    trace: str
    fleet: Fleet
    seed: int
    policies: tuple[str, ...]
    share: float  # of the usual number of requests


def compared(asked: Comparison) -> dict[str, Figures]:
    """By policy."""
    kind = next(kind for kind in KINDS if kind.name == asked.trace)
    trace, args = kind.trace(_demand(kind, asked), asked.seed), asked.fleet.args()
    return {name: figures_of(run(replay(trace, args, POLICIES[name], asked.seed))) for name in asked.policies}


def _demand(kind: Kind, asked: Comparison) -> Demand:
    fleet = asked.fleet
    rate = _UTILISATION * fleet.prefill_rate / kind.work
    return Demand(int(_REQUESTS[fleet.replicas] * asked.share), rate, fleet.replicas)
