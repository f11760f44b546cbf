"""What a router is here: it chooses a replica for a request, and is told of what it would see of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Protocol

from benchmarks.routing_sim.replica import Replica


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """A request as a router gets it. Two are never the same one."""

    token_ids: tuple[int, ...]
    names: tuple[int, ...]  # of the prompt's full blocks
    max_tokens: int
    session: str

    @property
    def tokens(self) -> int:
        return len(self.token_ids)


class Policy(Protocol):
    """All that it keeps is of one run."""

    def choose(self, asked: Asked) -> int:
        """The replica's place in the fleet; the request goes there at once."""
        ...

    def began(self, asked: Asked, cached_tokens: int) -> None:
        """Its first token came; so many of its prompt's were not computed again."""
        ...

    def ended(self, asked: Asked) -> None: ...


Start = Callable[[Sequence[Replica], Random], Policy]
"""A policy over a fleet, with a source of chance of its own. On the loop that the fleet runs on."""


class Stateless:
    """For those that keep nothing of requests under way."""

    def began(self, asked: Asked, cached_tokens: int) -> None:
        pass

    def ended(self, asked: Asked) -> None:
        pass


def best(scores: Sequence[float], chance: Random) -> int:
    """The place of the least; one of the equal ones by chance."""
    least = min(scores)
    places = [place for place, score in enumerate(scores) if score == least]
    return places[0] if len(places) == 1 else chance.choice(places)
