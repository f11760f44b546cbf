"""What is new between two snapshots: routing by it alone comes to the same as routing by everything."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from deepinfer.control_plane.router.news import about, changed_placements, told_anew
from deepinfer.control_plane.router.routes import Route, wanted_routes
from deepinfer.fleet import keys
from deepinfer.fleet.resources import Intent, Phase, Placement, ReplicaStatus
from deepinfer.fleet.snapshot import Snapshot
from tests.fleet_values import placement, status

PLACEMENTS = [
    placement(replica=replica, epoch=epoch, node=node, intent=intent)
    for replica in (0, 1, 2)
    for epoch in (1, 2)
    for node in ("node-1", "node-2")
    for intent in Intent
]
STATUSES = [
    status(placement(replica=replica).id, epoch, phase, endpoint=endpoint)
    for replica in (0, 1, 2)
    for epoch in (1, 2)
    for phase in (Phase.READY, Phase.FAILED)
    for endpoint in (None, "127.0.0.1:1", "127.0.0.1:2")
]
UNREADABLE = [keys.placement("node-1", p.id) for p in PLACEMENTS] + [keys.status("node-1", "chat-aaaaa-0")]


def key_of(record: Placement | ReplicaStatus) -> tuple[str, str]:
    return record.node, record.id


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    placements = draw(st.lists(st.sampled_from(PLACEMENTS), max_size=5, unique_by=key_of))
    statuses = draw(st.lists(st.sampled_from(STATUSES), max_size=4, unique_by=key_of))
    unreadable = draw(st.lists(st.sampled_from(UNREADABLE), max_size=1))
    return Snapshot(
        placements=tuple(sorted(placements, key=key_of)),
        statuses=tuple(sorted(statuses, key=key_of)),
        unreadable=dict.fromkeys(unreadable, "damaged"),
    )


def routed_by_news(before: Snapshot, after: Snapshot, known: dict[str, Route]) -> dict[str, Route]:
    changed = changed_placements(before, after)
    untouched = {placement: route for placement, route in known.items() if placement not in changed}
    of_changed = {placement: route for placement, route in known.items() if placement in changed}
    return untouched | wanted_routes(about(after, changed), of_changed)


@given(st.lists(snapshots(), min_size=1, max_size=6))
def test_routes_are_the_same_as_if_everything_were_looked_at(history: list[Snapshot]) -> None:
    before, by_news, by_all = Snapshot(), dict[str, Route](), dict[str, Route]()
    for fleet in history:
        by_news = routed_by_news(before, fleet, by_news)
        by_all = wanted_routes(fleet, by_all)
        assert by_news == by_all
        before = fleet


def test_only_a_status_that_says_something_else_is_news() -> None:
    said = status(endpoint="127.0.0.1:1")
    before = Snapshot(statuses=(said, status("chat-aaaaa-1")))
    again = replace(before, statuses=(said.model_copy(), status("chat-aaaaa-1", phase=Phase.FAILED)))
    assert [s.id for s in told_anew(before, again)] == ["chat-aaaaa-1"]
    assert told_anew(before, before) == told_anew(before, Snapshot()) == ()
