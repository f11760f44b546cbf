"""Which stage lies where, rule by rule."""

from __future__ import annotations

from collections import Counter

import pytest

from deepinfer.control_plane.scheduler.layouts import layouts
from deepinfer.control_plane.scheduler.plan import plan, planned
from deepinfer.control_plane.scheduler.sight import Sight
from deepinfer.fleet import keys
from deepinfer.fleet.resources import NodeSettings
from deepinfer.fleet.snapshot import Snapshot
from tests.pipeline_values import (
    HEAD,
    decided,
    fleet_of,
    host,
    node,
    only,
    restarted,
    seated,
    serving,
    where,
    with_state,
    without_node,
    without_status,
)


def test_nothing_is_decided_before_all_stages_are_there() -> None:
    fleet = fleet_of()
    assert decided(without_status(fleet, host(1))).layouts == ()
    assert decided(without_status(fleet, HEAD)).layouts == ()
    assert decided(with_state(fleet, HEAD, shape=None)).layouts == ()
    assert decided(with_state(fleet, host(0), endpoint="")).layouts == ()


def test_the_first_layout() -> None:
    layout = only(decided(fleet_of()))
    assert (layout.id, layout.head, layout.epoch, layout.number, layout.layers) == (HEAD, HEAD, 1, 1, (0, 2))
    assert seated(layout) == [(host(0), (2, 4)), (host(1), (4, 6))]
    assert layout.why == "6 layers as 2, 2, 2"


def test_a_model_that_does_not_fit_has_no_layout() -> None:
    assert decided(fleet_of(*(node(name, megabytes=15) for name in "abc"))).layouts == ()


def test_a_spare_is_seated_only_when_somebody_is_lost() -> None:
    fleet = decided(fleet_of(spares=1))
    before = only(fleet)
    assert len(before.seats) == 2
    after = only(decided(serving(fleet, lost=host(0))))
    assert (after.number, after.layers) == (2, before.layers)
    assert seated(after) == [(host(2), (2, 4)), (host(1), (4, 6))]
    assert after.avoided == (before.seats[0].endpoint,)
    assert after.why == f"{host(0)} on {before.seats[0].node} replaced"


def test_without_a_spare_the_layers_are_cut_anew_over_who_is_left_and_again_when_it_comes_back() -> None:
    fleet = decided(fleet_of())
    fleet = decided(serving(fleet, lost=host(0)))
    assert (only(fleet).number, only(fleet).layers, seated(only(fleet))) == (2, (0, 3), [(host(1), (3, 6))])
    fleet = decided(restarted(serving(fleet), host(0), boot=1))
    assert (only(fleet).number, only(fleet).layers) == (3, (0, 2))
    assert seated(only(fleet)) == [(host(0), (2, 4)), (host(1), (4, 6))]
    assert only(fleet).avoided == ()


def test_where_a_stage_was_lost_nobody_is_seated_until_it_is_another_process() -> None:
    fleet = decided(serving(decided(fleet_of(spares=1)), lost=host(0)))
    fleet = decided(serving(fleet, lost=host(1)))
    assert (only(fleet).number, seated(only(fleet))) == (3, [(host(2), (3, 6))])
    assert len(only(fleet).avoided) == 2
    fleet = decided(restarted(serving(fleet), host(1), boot=1))
    assert seated(only(fleet)) == [(host(1), (2, 4)), (host(2), (4, 6))]
    assert len(only(fleet).avoided) == 1


def test_what_was_lost_in_an_older_layout_is_lost_no_more() -> None:
    """The head's word is of the layout that it serves, not of the one that was decided meanwhile."""
    fleet = decided(serving(decided(fleet_of(spares=1)), lost=host(0)))
    assert layouts(Sight(fleet)) == fleet.layouts
    assert decided(with_state(fleet, HEAD, lost=host(1))).layouts == fleet.layouts


@pytest.mark.parametrize("spares", [0, 1])
def test_the_host_of_a_drained_node_is_replaced(spares: int) -> None:
    fleet = serving(decided(fleet_of(spares=spares)))
    drained = where(fleet, host(0))
    fleet = decided(fleet.but(node_settings=(NodeSettings(node=drained, drain=True),)))
    assert host(0) not in {seat.placement for seat in only(fleet).seats}
    assert only(fleet).number == 2


def test_a_host_that_drains_is_replaced() -> None:
    fleet = serving(decided(fleet_of(spares=1)))
    going = tuple(p.model_copy(update={"intent": "drain"}) if p.id == host(1) else p for p in fleet.placements)
    assert seated(only(decided(fleet.but(placements=going)))) == [(host(0), (2, 4)), (host(2), (4, 6))]


@pytest.mark.parametrize("silent", [0, 1, 2], ids=["the head's", "the first host's", "the second host's"])
def test_a_node_that_only_lost_its_lease_changes_nothing(silent: int) -> None:
    """What serves goes on without its agent; if it does not, the head says so."""
    fleet = serving(decided(fleet_of(spares=1)))
    missing = where(fleet, [HEAD, host(0), host(1)][silent])
    assert decided(without_node(fleet, missing)).layouts == fleet.layouts
    assert decided(fleet.but(nodes=())).layouts == fleet.layouts


def test_a_stage_on_a_node_that_is_not_there_is_replaced_once_the_head_misses_it() -> None:
    fleet = serving(decided(fleet_of(spares=1)), lost=host(0))
    fleet = decided(without_node(fleet, where(fleet, host(0))))
    assert seated(only(fleet)) == [(host(2), (2, 4)), (host(1), (4, 6))]


def test_two_replicas_share_no_process() -> None:
    fleet = decided(fleet_of(replicas=2, spares=1))
    processes = Counter(p for layout in fleet.layouts for p in (layout.head, *(s.placement for s in layout.seats)))
    assert len(fleet.layouts) == 2
    assert set(processes.values()) == {1}
    fleet = decided(serving(fleet, lost=fleet.layouts[0].seats[0].placement))
    processes = Counter(p for layout in fleet.layouts for p in (layout.head, *(s.placement for s in layout.seats)))
    assert set(processes.values()) == {1}


def raised(fleet: Snapshot) -> Snapshot:
    """The replica's own placement is of another epoch, whose process is not up yet."""
    placements = tuple(p.model_copy(update={"epoch": 2}) if p.id == HEAD else p for p in fleet.placements)
    return without_status(fleet, HEAD).but(placements=placements)


def test_a_replica_of_another_epoch_begins_with_a_higher_number() -> None:
    """Hosts that stay up obey no older one."""
    fleet = decided(serving(decided(fleet_of(spares=1)), lost=host(0)))
    fleet = decided(raised(fleet))
    fleet = decided(restarted(fleet, HEAD, boot=1))
    assert (only(fleet).epoch, only(fleet).number) == (2, 3)


def test_hosts_with_another_key_are_not_seated() -> None:
    keyed = [node("a"), node("b"), node("c", key="other"), node("d")]
    fleet = decided(fleet_of(*keyed, spares=1))
    keys_of = {one.name: one.pipeline_key for one in fleet.nodes}
    layout = only(fleet)
    assert len(layout.seats) == 2
    assert len({keys_of[layout.node], *(keys_of[seat.node] for seat in layout.seats)}) == 1


def test_hosts_of_another_spec_are_not_seated() -> None:
    """They would load another model's layers."""
    fleet = fleet_of(spares=1)
    other = fleet.placements[-1].spec.model_copy(update={"model": "another"})
    changed = tuple(p.model_copy(update={"spec": other}) if p.id == host(0) else p for p in fleet.placements)
    layout = only(decided(fleet.but(placements=changed)))
    assert [seat.placement for seat in layout.seats] == [host(1), host(2)]


@pytest.mark.parametrize(
    ("counts", "layers"), [((1, 2, 3), [(0, 1), (1, 3), (3, 6)]), ((4, 1, 1), [(0, 4), (4, 5), (5, 6)])]
)
def test_layers_told_by_hand(counts: tuple[int, ...], layers: list[tuple[int, int]]) -> None:
    fleet = decided(fleet_of(layers=counts))
    assert [only(fleet).layers, *(seat.layers for seat in only(fleet).seats)] == layers
    fleet = decided(serving(fleet, lost=host(0)))
    assert [only(fleet).layers, *(seat.layers for seat in only(fleet).seats)] == [(0, 3), (3, 6)], "for another number"


def test_layers_told_by_hand_that_do_not_add_up_are_cut_as_if_nothing_was_told() -> None:
    assert only(decided(fleet_of(layers=(1, 2, 9)))).why == "6 layers as 2, 2, 2"


def test_of_a_deleted_deployment_the_layout_stays_as_long_as_its_replica_drains() -> None:
    fleet = serving(decided(fleet_of()))
    fleet = fleet.but(deployments=())
    fleet = decided(planned(fleet, plan(fleet)))
    assert only(fleet).number == 1
    assert decided(fleet.but(placements=())).layouts == ()


@pytest.mark.parametrize(
    "record", [keys.deployment("chat"), keys.placement("a", "x"), keys.status("a", HEAD), keys.node("a")]
)
def test_nothing_is_concluded_from_what_cannot_be_read(record: str) -> None:
    fleet = serving(decided(fleet_of(spares=1)))
    gone = {"deployments": ()} if record == keys.deployment("chat") else {}
    nodes = tuple(n for n in fleet.nodes if record != keys.node(n.name))
    broken = fleet.but(unreadable={record: "x: Field required"}, nodes=nodes, **gone)
    assert decided(broken).layouts == fleet.layouts


def test_nobody_is_left_but_the_head() -> None:
    """A pipeline has a stage after its head."""
    fleet = decided(fleet_of(stages=2))
    fleet = decided(serving(fleet, lost=host(0)))
    assert only(fleet).number == 1


def test_a_head_that_all_its_stages_miss_is_followed_by_a_spare_and_begins_anew() -> None:
    fleet = serving(decided(fleet_of(spares=1)))
    one = with_state(fleet, host(0), misses=1)
    assert decided(one).layouts == fleet.layouts, "the other one hears it"
    layout = only(decided(with_state(one, host(1), misses=1)))
    assert (layout.head, layout.number, layout.layers) == (host(2), 2, (0, 2))
    assert seated(layout) == [(host(0), (2, 4)), (host(1), (4, 6))]
    assert layout.avoided == ("a:10000",)


def test_a_head_on_a_node_that_is_not_there_is_followed_once_its_stages_miss_it() -> None:
    fleet = serving(decided(fleet_of(spares=1)))
    fleet = decided(without_node(fleet, "a"))
    assert only(fleet).head == HEAD
    for missing in (host(0), host(1)):
        fleet = with_state(fleet, missing, misses=1)
    assert (only(decided(fleet)).head, only(decided(fleet)).number) == (host(2), 2)
