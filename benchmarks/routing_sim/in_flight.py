"""Policies that look at no cache: by requests in flight from the router, by session, in turn, by chance."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from benchmarks.routing_sim.policy import Asked, Stateless, best
from benchmarks.routing_sim.replica import Replica


class LeastLoaded:
    """The fewest requests in flight; one of the equal ones by chance."""

    def __init__(self, fleet: Sequence[Replica], chance: Random) -> None:
        self.in_flight = [0] * len(fleet)
        self.chance = chance
        self._places: dict[Asked, int] = {}

    def choose(self, asked: Asked) -> int:
        place = self._places[asked] = self._chosen(asked)
        self.in_flight[place] += 1
        return place

    def began(self, asked: Asked, cached_tokens: int) -> None:
        pass

    def ended(self, asked: Asked) -> None:
        self.in_flight[self._places.pop(asked)] -= 1

    def _chosen(self, asked: Asked) -> int:
        return best(self.in_flight, self.chance)


class PowerOfTwo(LeastLoaded):
    """The less loaded of two that chance chose."""

    def _chosen(self, asked: Asked) -> int:
        return min(self.chance.sample(range(len(self.in_flight)), 2), key=lambda place: self.in_flight[place])


class StickySession(LeastLoaded):
    """Where the session's first request went: the least loaded then."""

    def __init__(self, fleet: Sequence[Replica], chance: Random) -> None:
        super().__init__(fleet, chance)
        self._homes: dict[str, int] = {}

    def _chosen(self, asked: Asked) -> int:
        if asked.session not in self._homes:
            self._homes[asked.session] = super()._chosen(asked)
        return self._homes[asked.session]


class RoundRobin(Stateless):
    def __init__(self, fleet: Sequence[Replica], chance: Random) -> None:
        self._replicas, self._turn = len(fleet), -1

    def choose(self, asked: Asked) -> int:
        self._turn = (self._turn + 1) % self._replicas
        return self._turn


class ByChance(Stateless):
    def __init__(self, fleet: Sequence[Replica], chance: Random) -> None:
        self._replicas, self._chance = len(fleet), chance

    def choose(self, asked: Asked) -> int:
        return self._chance.randrange(self._replicas)
