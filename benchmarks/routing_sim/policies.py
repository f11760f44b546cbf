"""The policies under their names: deepinfer's, and its peers'."""

from __future__ import annotations

from typing import Final

from benchmarks.routing_sim.deepinfer_policy import DeepinferPolicy
from benchmarks.routing_sim.dynamo_cost import DynamoCost
from benchmarks.routing_sim.in_flight import ByChance, LeastLoaded, PowerOfTwo, RoundRobin, StickySession
from benchmarks.routing_sim.llm_d_score import LlmDScore
from benchmarks.routing_sim.policy import Start

OURS: Final = "deepinfer"
LEAST_LOADED: Final = "least-loaded"
POLICIES: Final[dict[str, Start]] = {
    OURS: DeepinferPolicy,
    "dynamo": DynamoCost,
    "llm-d": LlmDScore,
    "power-of-two": PowerOfTwo,
    LEAST_LOADED: LeastLoaded,
    "sticky": StickySession,
    "round-robin": RoundRobin,
    "random": ByChance,
}
