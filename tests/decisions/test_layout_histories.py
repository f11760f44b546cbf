"""Layouts over random histories of processes: every layer is somewhere once, nobody is seated twice, and it rests."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from deepinfer.fleet.pipeline import Layout
from deepinfer.fleet.resources import Node
from deepinfer.fleet.snapshot import Snapshot
from tests.pipeline_values import (
    SHAPE,
    fleet_of,
    node,
    restarted,
    rested,
    serving,
    without_node,
    without_status,
)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.sampled_from([3, 30, 60, 200, 1000]), min_size=3, max_size=5),
    st.lists(st.tuples(st.sampled_from(["lose", "restart", "silence", "down", "up"]), st.integers(0, 9)), max_size=15),
    st.integers(2, 4),
    st.integers(1, 2),
)
def test_properties_of_every_history(
    memory: list[int], events: list[tuple[str, int]], stages: int, replicas: int
) -> None:
    nodes = tuple(node(name, megabytes) for name, megabytes in zip("abcde", memory, strict=False))
    fleet = fleet_of(*nodes, stages=stages, spares=1, replicas=replicas)
    fleet = serving(rested(fleet))
    numbers: dict[str, int] = {}
    for boot, (what, which) in enumerate(events, 1):
        fleet = rested(after(fleet, nodes, (what, which), boot))
        for layout in fleet.layouts:
            check_whole(layout)
            assert layout.number >= numbers.get(layout.id, 0)
            numbers[layout.id] = layout.number
        taken = Counter(p for layout in fleet.layouts for p in (layout.head, *(s.placement for s in layout.seats)))
        assert set(taken.values()) <= {1}, "nobody is seated twice"
        fleet = rested(serving(fleet))


def check_whole(layout: Layout) -> None:
    """Every layer once, in order."""
    cuts = [layout.layers, *(seat.layers for seat in layout.seats)]
    assert (cuts[0][0], cuts[-1][1]) == (0, SHAPE.layers)
    assert all(stop == start for (_, stop), (start, _) in pairwise(cuts))
    assert all(start < stop for start, stop in cuts)
    assert layout.seats


def after(fleet: Snapshot, nodes: tuple[Node, ...], event: tuple[str, int], boot: int) -> Snapshot:
    """What a network, a machine or a head does."""
    what, which = event
    placement = fleet.placements[which % len(fleet.placements)].id if fleet.placements else ""
    name = nodes[which % len(nodes)].name
    match what:
        case "lose":
            return serving(fleet, lost=placement)
        case "restart" if placement:
            return restarted(fleet, placement, boot)
        case "silence":
            return without_status(fleet, placement)
        case "down":
            return without_node(fleet, name)
    return fleet.but(nodes=tuple(n for n in nodes if n.name == name or n in fleet.nodes))
