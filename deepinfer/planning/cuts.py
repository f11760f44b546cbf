"""The cheapest cut of the layers into contiguous ranges, by a dynamic programme over the pipeline's devices. Pure.

`best[state][b]` is the least that carrying the layers below b costs. A state is which devices the pipeline has gone
past: a position in a fixed order, or where devices are few the set of those that carry something, which tries every
order. Costs are added up, or the largest one counts; what does not fit costs infinity. A device may carry nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf

from deepinfer.planning.speed import Cut, Part

Costs = Sequence[Sequence[Sequence[float]]]
"""By device, first layer, and the layer after the last one."""

PATIENT = 600_000  # cells of all steps together: eight devices for 32 layers, in a tenth of a second
QUICK = 50_000  # for who tries many costs


@dataclass(frozen=True, slots=True)
class _Step:
    """From a state to a later one; the device carries something, or (None) nobody does."""

    before: int
    device: int | None
    after: int


@dataclass(frozen=True, slots=True)
class Orders:
    """Which orders of the devices are tried, as states from 0 on and what leads from one to another."""

    states: int
    steps: tuple[_Step, ...]
    ends: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Found:
    """`cost` is infinite, and the cut empty, where nothing fits."""

    cost: float
    cut: Cut


@dataclass(frozen=True, slots=True)
class Wanted:
    """What an order of devices must keep to."""

    devices: int
    required: frozenset[int] = frozenset()  # who must carry something
    head_first: bool = False  # device 0 carries the first layers


def orders_of(wanted: Wanted, layers: int, most_cells: int) -> tuple[Orders, ...]:
    """The order given; then every order, where that takes no more cells than that, else the reverse."""
    given, fixed = range(wanted.devices), int(wanted.head_first)
    cells = wanted.devices * 2 ** (wanted.devices - 1) * layers * (layers + 1) // 2
    if cells <= most_cells:
        return (in_order(given, wanted), in_any_order(wanted))
    return (in_order(given, wanted), in_order([*given[:fixed], *given[fixed:][::-1]], wanted))


def in_order(order: Sequence[int], wanted: Wanted) -> Orders:
    steps: list[_Step] = []
    needed = _needed(wanted)
    for at, device in enumerate(order):
        steps.append(_Step(at, device, at + 1))
        if device not in needed:
            steps.append(_Step(at, None, at + 1))
    return Orders(len(order) + 1, tuple(steps), (len(order),))


def in_any_order(wanted: Wanted) -> Orders:
    """A state's bits are the devices that carry something."""
    states, needed = 1 << wanted.devices, sum(1 << device for device in _needed(wanted))
    steps = (
        _Step(used, device, used | 1 << device)
        for used in range(states)
        for device in range(wanted.devices if used or not wanted.head_first else 1)
        if not used >> device & 1
    )
    return Orders(states, tuple(steps), tuple(used for used in range(1, states) if used & needed == needed))


def _needed(wanted: Wanted) -> frozenset[int]:
    return wanted.required | {0} if wanted.head_first else wanted.required


def costs_of(devices: int, layers: int, cost: Callable[[Part], float]) -> Costs:
    return [
        [
            [inf] * (start + 1) + [cost(Part(device, start, stop)) for stop in range(start + 1, layers + 1)]
            for start in range(layers)
        ]
        for device in range(devices)
    ]


def cheapest(orders: Orders, costs: Costs, *, largest: bool = False) -> Found:
    """The cut with the smallest sum of its parts' costs, or (`largest`) whose largest one is the smallest.

    Of cuts that cost the same, in a fixed order, the one that gives more to the later devices.
    """
    layers = len(costs[0]) if costs else 0
    best: list[list[float]] = [[inf] * (layers + 1) for _ in range(orders.states)]
    origin: list[list[tuple[_Step, int] | None]] = [[None] * (layers + 1) for _ in range(orders.states)]
    best[0][0] = 0
    for step in orders.steps:
        before, after, came = best[step.before], best[step.after], origin[step.after]
        for start in range(layers + 1):
            spent = before[start]
            if spent == inf:
                continue
            if step.device is None:
                if spent < after[start]:
                    after[start], came[start] = spent, (step, start)
                continue
            if start == layers:
                continue
            row = costs[step.device][start]
            for stop in range(start + 1, layers + 1):
                more = row[stop]
                total = (more if more > spent else spent) if largest else spent + more
                if total < after[stop]:
                    after[stop], came[stop] = total, (step, start)
    end = min(orders.ends, key=lambda state: best[state][layers], default=0)
    return Found(best[end][layers], _cut(origin, end, layers))


def _cut(origin: Sequence[Sequence[tuple[_Step, int] | None]], state: int, stop: int) -> Cut:
    parts: list[Part] = []
    while (came := origin[state][stop]) is not None:
        step, start = came
        if step.device is not None:
            parts.append(Part(step.device, start, stop))
        state, stop = step.before, start
    return tuple(reversed(parts))
