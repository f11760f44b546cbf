"""Which device carries which layers. Pure.

First by memory: the cut that fits and is nearest to each device's share of the layers, the sum of squares being least;
that is the largest-remainder rule with the caps inside its loop, and exact too where layers differ in size or a
range's place decides what it must hold. Gross memory makes the share, and what is left beside the reserve what fits.
Every device that can hold a layer gets one. Ties go to the later device.

Then by speed, where each device's is known: the cut with the shortest time, and devices that only add to it carry
nothing. For throughput, of all cuts whose slowest stage is no slower than a bound, the one with the shortest lap; the
bound starts at the least there can be and is let go step by step, and the tokens a second decide.

Limit: every order of the devices is tried with up to eight devices for 32 layers or five for 80, and for throughput
with five or three; with more, the order given and its reverse. 16 devices for 80 layers take a few seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from math import inf

from deepinfer.planning.cuts import PATIENT, QUICK, Costs, Orders, Wanted, cheapest, costs_of, in_order, orders_of
from deepinfer.planning.memory import Memory
from deepinfer.planning.speed import Cut, Part, Speed
from deepinfer.planning.task import Objective, Task

_LOOSER = (1.0, 1.2, 1.6, inf)
_LOOSER_STILL = (1.2, inf)  # where only the worth of one device is asked for
_BETTER = 1 - 1e-9  # less is rounding


class Split:
    """The cuts of one task."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self.memory = Memory(task)
        self.speed = Speed(task)

    def by_memory(self) -> Cut:
        """In the order given, unless that leaves out who can take part in another one. Empty where nothing fits."""
        costs = self._fitting(lambda part: _distance(self._task, part))
        return max((cheapest(orders, costs).cut for orders in self._orders()), key=len)

    def regardless(self) -> Cut:
        """By share of memory in the order given, whether it fits or not."""
        devices, layers = self._size
        costs = costs_of(devices, layers, lambda part: _distance(self._task, part))
        return cheapest(in_order(range(devices), Wanted(devices)), costs).cut

    def by_speed(self, required: int | None = None) -> Cut:
        """Empty where nothing fits; `required` is a device that must carry something."""
        latency = self._task.aim is Objective.LATENCY
        best: Cut = ()
        for cut in self._shortest(required) if latency else self._most_tokens(required):
            if cut and (not best or self.score(cut) < self.score(best) * _BETTER):
                best = cut
        return best

    def score(self, cut: Cut) -> float:
        """Seconds a token, as the task's aim counts them: less is better."""
        if self._task.aim is Objective.LATENCY:
            return self.speed.token(cut)
        return 1 / self.speed.throughput(cut).tokens_per_second

    def fits(self, part: Part) -> bool:
        return self.memory.fits(part.device, part.start, part.stop)

    def can_hold_a_layer(self, device: int) -> bool:
        return any(self.fits(Part(device, layer, layer + 1)) for layer in range(self._task.model.layers))

    def _shortest(self, required: int | None) -> Iterator[Cut]:
        for orders in self._orders(required):
            yield cheapest(orders, self._times[0][1]).cut

    def _most_tokens(self, required: int | None) -> Iterator[Cut]:
        for stages, laps in self._times:
            for orders in self._orders(required, QUICK):
                least = cheapest(orders, stages, largest=True).cost
                for looser in () if least == inf else _LOOSER if required is None else _LOOSER_STILL:
                    yield cheapest(orders, _bounded(laps, stages, least * looser)).cut

    @cached_property
    def _times(self) -> list[tuple[Costs, Costs]]:
        """Of a stage's step, and with its hop: for as many requests in a step as there may be."""
        return [self._times_of(requests) for requests in self._steps()]

    def _times_of(self, requests: int) -> tuple[Costs, Costs]:
        stages = self._fitting(lambda part: self.speed.stage(part, requests))
        return stages, self._fitting(lambda part: self.speed.stage(part, requests) + self.speed.hop(part))

    def _steps(self) -> list[int]:
        """The requests of a step, if the pipeline has one group, two, one for every other device, one for each."""
        if self._task.aim is Objective.LATENCY:
            return [1]
        devices = len(self._task.devices)
        return sorted({-(-self._task.concurrency // groups) for groups in (1, 2, (devices + 1) // 2, devices)})

    def _fitting(self, cost: Callable[[Part], float]) -> Costs:
        return costs_of(*self._size, lambda part: cost(part) if self.fits(part) else inf)

    def _orders(self, required: int | None = None, cells: int = PATIENT) -> tuple[Orders, ...]:
        devices, layers = self._size
        needed = frozenset(() if required is None else (required,))
        return orders_of(Wanted(devices, needed, self._task.head_first), layers, cells)

    @property
    def _size(self) -> tuple[int, int]:
        return len(self._task.devices), self._task.model.layers


def _distance(task: Task, part: Part) -> int:
    """How far the part is from the device's share, squared, in whole numbers: ties must be ties.

    From that of carrying nothing, so that nothing costs nothing; and less by more than all distances together, so that
    who can carry something does.
    """
    layers, total = task.model.layers, sum(device.memory_bytes for device in task.devices)
    share = layers * task.devices[part.device].memory_bytes
    all_distances = len(task.devices) * (layers * total) ** 2
    return ((part.stop - part.start) * total - share) ** 2 - share**2 - all_distances - 1


def _bounded(costs: Costs, bounded: Costs, most: float) -> Costs:
    """The costs where the other ones are no more than that."""
    return [
        [
            [cost if other <= most else inf for cost, other in zip(row, others, strict=True)]
            for row, others in zip(rows, other_rows, strict=True)
        ]
        for rows, other_rows in zip(costs, bounded, strict=True)
    ]
