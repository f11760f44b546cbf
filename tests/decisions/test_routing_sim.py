"""The simulated fleets' bench: its clock, its peers' formulas worked by hand, its traces and its ratios."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from random import Random

import pytest

from benchmarks.routing_sim.dynamo_cost import ActiveSequences
from benchmarks.routing_sim.figures import Figures, figures_of, last_line
from benchmarks.routing_sim.fleets import Fleet
from benchmarks.routing_sim.llm_d_score import scores
from benchmarks.routing_sim.policies import POLICIES
from benchmarks.routing_sim.policy import best
from benchmarks.routing_sim.replay import replay
from benchmarks.routing_sim.replica import Replica
from benchmarks.routing_sim.residency import Residency
from benchmarks.routing_sim.trace import Demand
from benchmarks.routing_sim.traces import KINDS, Kind
from benchmarks.routing_sim.virtual_time import NothingLeftToHappen, run
from deepinfer.engine_shim.state_wire import EngineState
from deepinfer.engine_shim.wire import ShimPhase


def test_hours_pass_at_once_and_in_order() -> None:
    woken: list[tuple[str, float]] = []

    async def sleeper(name: str, seconds: float) -> None:
        await asyncio.sleep(seconds)
        woken.append((name, round(asyncio.get_running_loop().time())))

    async def main() -> None:
        await asyncio.gather(sleeper("late", 7200), sleeper("early", 3600))

    run(main())
    assert woken == [("early", 3600), ("late", 7200)]


def test_waiting_for_what_never_comes_is_an_error() -> None:
    async def main() -> None:
        await asyncio.Event().wait()

    with pytest.raises(NothingLeftToHappen):
        run(main())


def test_dynamo_adds_up_what_is_to_prefill_and_what_is_in_use() -> None:
    worker = ActiveSequences()
    assert worker.cost((1, 2, 3), tokens=56, overlap=1, block_size=16) == 56 / 16 - 1 + 3
    worker.add((1, 2, 3), prefill_tokens=40)
    assert worker.cost((1, 2, 9), tokens=48, overlap=2, block_size=16) == (40 + 48) / 16 - 2 + 3 + 1
    worker.add((1, 2, 9), prefill_tokens=16)
    worker.prefill_tokens -= 40  # the first one's first token came
    worker.free((1, 2, 3))
    assert worker.cost((1, 2), tokens=32, overlap=9, block_size=16) == 0 + 3  # credit does not go below nothing


def test_llm_d_adds_up_prefix_usage_and_queue() -> None:
    found = scores([5, 0, 10], 10, [0.5, 0.0, 1.0], [4, 0, 2])
    assert found == [2 * 0.5 + 0.5 + 0.0, 0.0 + 1.0 + 1.0, 2 * 1.0 + 0.0 + 0.5]
    assert scores([0, 0], 0, [0.0, 0.0], [3, 3]) == [2.0, 2.0]  # queues of one length are all the shortest


def test_equal_scores_are_split_by_chance() -> None:
    assert {best([1.0, 0.5, 0.5], Random(seed)) for seed in range(20)} == {1, 2}


def test_overlap_is_the_prefix_that_each_replica_holds() -> None:
    async def main() -> None:
        fleet = [Replica(place, args) for place, args in enumerate(Fleet(8, False).args()[:3])]
        residency, said = Residency(fleet), EngineState(1, 1, False, ShimPhase.READY)
        residency.told(1, replace(said, stored={0: (1, 2, 3)}))
        residency.told(2, replace(said, stored={0: (1, 3)}))
        assert residency.overlaps((1, 2, 3)) == [3, 1, 0]
        residency.told(1, replace(said, removed={0: (2,)}))
        assert residency.overlaps((1, 2, 3)) == [1, 1, 0]

    run(main())


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_trace_depends_on_its_seed_alone(kind: Kind) -> None:
    demand = Demand(requests=80, rate=20.0, replicas=8)
    assert kind.trace(demand, 1) == kind.trace(demand, 1) != kind.trace(demand, 2)
    arrivals = [session.arrival for session in kind.trace(demand, 1).sessions]
    assert arrivals == sorted(arrivals)
    assert sum(len(session.turns) for session in kind.trace(demand, 1).sessions) == 80


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_answers_a_whole_trace_and_the_same_way_each_time(name: str) -> None:
    agents = next(kind for kind in KINDS if kind.name == "agents")
    trace, fleet = agents.trace(Demand(24, 20.0, 4), seed=1), Fleet(4, True).args()
    first, second = (run(replay(trace, fleet, POLICIES[name], seed=1)) for _ in range(2))
    assert first == second
    figures = figures_of(first)
    assert len(first.served) == 24
    assert 0 < figures.ttft_mean <= figures.ttft_p99
    assert 0 < figures.cached_share < 1


def test_the_last_line_has_the_worst_cell() -> None:
    def cell(ours: float, dynamo: float, least: float) -> dict[str, Figures]:
        made = {name: Figures(ttft, ttft * 4, 1 / ttft, 0, 0, 0) for name, ttft in (("dynamo", dynamo),)}
        return made | {
            "deepinfer": Figures(ours, ours * 4, 1 / ours, 0, 0, 0),
            "least-loaded": Figures(least, least * 4, 1 / least, 0, 0, 0),
        }

    cells = {("hot", "8"): cell(1.0, 0.8, 2.0), ("none", "8"): cell(0.5, 1.0, 0.625)}
    assert last_line(cells, "none") == (
        "bench-routing-sim worst_ttft_mean=1.250 worst_ttft_p99=1.250 worst_rate=0.800 none_vs_least=0.800"
    )
