"""The traces, each with a way of its own to share prompts, or none. Arrivals are Poisson; nobody waits for others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

from benchmarks.routing_sim.trace import Demand, Session, Tokens, Trace, Turn, text


@dataclass(frozen=True, slots=True)
class Kind:
    """A way to make traces. `work`: a request's prompt tokens that a good router leaves to compute, about."""

    name: str
    work: int
    sessions: Callable[[Demand, Random], Iterator[Session]]

    def trace(self, demand: Demand, seed: int) -> Trace:
        """The same for the same seed."""
        sessions = sorted(self.sessions(demand, Random(f"{self.name} {seed}")), key=lambda session: session.arrival)
        return Trace(self.name, tuple(sessions))


def _arrivals(chance: Random, rate: float, count: int) -> Iterator[float]:
    now = 0.0
    for _ in range(count):
        now += chance.expovariate(rate)
        yield now


def _alone(arrival: float, prompt: Tokens, max_tokens: int) -> Session:
    return Session(arrival, (Turn(prompt, max_tokens),))


def _zipf(demand: Demand, chance: Random) -> Iterator[Session]:
    """System prompts, 12 for each replica: the n-th is asked for 1/n as often as the first."""
    prefixes = [text(chance, chance.choice((1024, 2048, 3072))) for _ in range(12 * demand.replicas)]
    weights = [1 / rank for rank in range(1, len(prefixes) + 1)]
    for arrival in _arrivals(chance, demand.rate, demand.requests):
        (prefix,) = chance.choices(prefixes, weights)
        yield _alone(arrival, prefix + text(chance, chance.randint(64, 640)), chance.randint(20, 160))


def _agents(demand: Demand, chance: Random) -> Iterator[Session]:
    """Tool loops of eight calls over a context that grows with every one; five agents, each with instructions."""
    calls, instructions = 8, [text(chance, 2048) for _ in range(5)]
    for arrival in _arrivals(chance, demand.rate / calls, demand.requests // calls):
        first = chance.choice(instructions)
        turns = []
        for number in range(calls):
            found = text(chance, chance.randint(256, 1536))
            new = found if number else first + found
            turns.append(Turn(new, chance.randint(10, 80), chance.expovariate(2.0)))
        yield Session(arrival, tuple(turns))


def _bursts(demand: Demand, chance: Random) -> Iterator[Session]:
    """Forty questions about one document within 50 ms, and nobody asks about it again."""
    size = 40
    for arrival in _arrivals(chance, demand.rate / size, demand.requests // size):
        document = text(chance, 1600)
        for _ in range(size):
            question = text(chance, chance.randint(32, 160))
            yield _alone(arrival + 0.05 * chance.random(), document + question, chance.randint(20, 100))


def _hot(demand: Demand, chance: Random) -> Iterator[Session]:
    """Four of five prompts begin alike; the fifth is like no other."""
    prefix = text(chance, 3200)
    for arrival in _arrivals(chance, demand.rate, demand.requests):
        hot = chance.random() < 0.8
        prompt = prefix + text(chance, chance.randint(64, 480)) if hot else text(chance, chance.randint(960, 4000))
        yield _alone(arrival, prompt, chance.randint(20, 150))


def _none(demand: Demand, chance: Random) -> Iterator[Session]:
    """No prompt is like another."""
    for arrival in _arrivals(chance, demand.rate, demand.requests):
        yield _alone(arrival, text(chance, chance.randint(64, 3200)), chance.randint(20, 200))


NONE = Kind("none", 1632, _none)
KINDS = (
    Kind("zipf", 700, _zipf),
    Kind("agents", 1100, _agents),
    Kind("bursts", 400, _bursts),
    Kind("hot", 720, _hot),
    NONE,
)
