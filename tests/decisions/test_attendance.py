"""Who is given up, and when: tables over a clock that the test turns."""

from __future__ import annotations

import dataclasses
import math

from deepinfer.control_plane.scheduler.attendance import Attendance, absences, attended, due
from deepinfer.control_plane.scheduler.decision import Circumstances, Memory, decided
from deepinfer.fleet import keys
from deepinfer.fleet.resources import Intent, NodeSettings
from deepinfer.fleet.snapshot import Snapshot
from tests.decisions.test_plan import deployment, node, running

GRACE = 60.0


def fleet(count: int) -> Snapshot:
    """One replica on each of so many nodes."""
    return running((deployment(replicas=count),), tuple(node(f"n{i}") for i in range(count)))


def without(known: Snapshot, *names: str) -> Snapshot:
    return dataclasses.replace(known, nodes=tuple(n for n in known.nodes if n.name not in names))


def test_a_node_is_given_up_when_its_grace_is_over_and_not_before() -> None:
    away = without(fleet(3), "n0")
    seen = attended(Attendance(), away, 100.0, GRACE)
    assert (seen.lost, due(seen, GRACE)) == (frozenset(), 160.0)
    seen = attended(seen, away, 159.9, GRACE)
    assert not seen.lost
    seen = attended(seen, away, 160.0, GRACE)
    assert seen.lost == {"n0"}
    assert due(seen, GRACE) == math.inf


def test_a_node_that_came_back_in_time_has_its_whole_grace_again() -> None:
    whole = fleet(3)
    seen = attended(Attendance(), without(whole, "n0"), 0.0, GRACE)
    seen = attended(seen, whole, 50.0, GRACE)
    seen = attended(seen, without(whole, "n0"), 55.0, GRACE)
    assert not attended(seen, without(whole, "n0"), 100.0, GRACE).lost


def test_a_lost_node_that_returns_is_lost_no_longer() -> None:
    whole = fleet(3)
    seen = Attendance(away_since={"n0": 0.0}, lost=frozenset({"n0"}))
    assert attended(seen, whole, 100.0, GRACE).lost == frozenset()


def test_one_node_at_a_time_is_given_up() -> None:
    away = without(fleet(7), "n0", "n1")
    seen = attended(Attendance(), away, 0.0, GRACE)
    seen = attended(seen, away, 60.0, GRACE)
    assert (set(seen.lost), due(seen, GRACE)) == ({"n0"}, 70.0)
    seen = attended(seen, away, 69.0, GRACE)
    assert seen.lost == {"n0"}
    assert attended(seen, away, 70.0, GRACE).lost == {"n0", "n1"}


def test_when_more_than_a_third_are_away_together_nobody_is_given_up() -> None:
    away = without(fleet(6), "n0", "n1", "n2")
    seen = attended(attended(Attendance(), away, 0.0, GRACE), away, 1000.0, GRACE)
    assert not seen.lost
    assert "3 of 6 nodes are away together" in seen.brake
    assert due(seen, GRACE) == math.inf
    fewer = without(fleet(6), "n0", "n1")
    assert attended(seen, fewer, 1001.0, GRACE).lost == {"n0"}, "a third is not more than a third"


def test_the_only_other_node_of_two_may_be_given_up() -> None:
    away = without(fleet(2), "n0")
    seen = attended(attended(Attendance(), away, 0.0, GRACE), away, 60.0, GRACE)
    assert (set(seen.lost), seen.brake) == ({"n0"}, "")


def test_a_person_needs_no_grace_and_no_brake_holds_one() -> None:
    away = without(fleet(3), "n0", "n1", "n2")
    said = dataclasses.replace(away, node_settings=(NodeSettings(node="n1", lost=True),))
    assert attended(Attendance(), said, 0.0, GRACE).lost == {"n1"}


def test_a_word_about_a_node_that_is_there_changes_nothing() -> None:
    said = dataclasses.replace(fleet(3), node_settings=(NodeSettings(node="n1", lost=True),))
    assert attended(Attendance(), said, 0.0, GRACE) == Attendance()


def test_a_node_whose_record_cannot_be_read_is_there() -> None:
    odd = dataclasses.replace(without(fleet(3), "n0"), unreadable={keys.node("n0"): "instance: Field required"})
    assert attended(Attendance(), odd, 0.0, GRACE).away_since == {}


def test_an_absence_keeps_the_time_of_its_first_telling() -> None:
    away = without(fleet(3), "n0")
    seen = attended(Attendance(), away, 0.0, GRACE)
    told = absences(seen, away, "first")
    assert [(a.node, a.since, a.lost) for a in told] == [("n0", "first", False)]
    later = dataclasses.replace(away, absences=told)
    seen = attended(seen, later, 60.0, GRACE)
    assert [(a.since, a.lost) for a in absences(seen, later, "later")] == [("first", True)]


def test_an_engine_of_a_lost_node_may_be_silent_for_a_moment_also_before_a_new_leader() -> None:
    away = without(fleet(3), "n0")
    (engine,) = ((p.id, p.epoch) for p in away.placements if p.node == "n0")
    lost = Attendance(away_since={"n0": 0.0}, lost=frozenset({"n0"}))
    seen = attended(lost, away, 100.0, GRACE, {engine})
    assert (seen.waited_for, due(seen, GRACE)) == (frozenset(), math.inf)
    for before in (seen, lost):
        silent = attended(before, away, 105.0, GRACE, ())
        assert (set(silent.waited_for), due(silent, GRACE)) == ({engine}, 115.0)
        assert attended(silent, away, 114.9, GRACE, ()).waited_for == {engine}
        assert not attended(silent, away, 115.0, GRACE, ()).waited_for
        assert not attended(before, away, 105.0, GRACE).waited_for, "nobody asks it"


def test_a_person_who_says_that_a_node_is_lost_waits_for_no_silence() -> None:
    away = without(fleet(3), "n0")
    seen = attended(Attendance(), away, 0.0, GRACE)
    said = dataclasses.replace(away, node_settings=(NodeSettings(node="n0", lost=True),))
    seen = attended(seen, said, 1.0, GRACE)
    assert (set(seen.lost), set(seen.waited_for)) == ({"n0"}, set())


def test_who_was_silent_all_along_is_lost_with_its_node() -> None:
    away = without(fleet(3), "n0")
    seen = attended(attended(Attendance(), away, 0.0, GRACE, ()), away, 60.0, GRACE, ())
    assert (set(seen.lost), seen.waited_for) == ({"n0"}, frozenset())


def test_a_leader_that_has_no_connections_yet_gives_up_nobody_who_serves() -> None:
    away = without(fleet(3), "n0")
    told = absences(Attendance({"n0": 0.0}, frozenset({"n0"})), away, "before")
    away = dataclasses.replace(away, absences=told)
    (engine,) = ((p.id, p.epoch) for p in away.placements if p.node == "n0")

    def drained(memory: Memory, now: float, answering: frozenset[tuple[str, int]]) -> tuple[list[str], Memory]:
        decision = decided(away, memory, Circumstances(now, "now", answering))
        placements = decision.memory.last.fleet.placements if decision.memory.last else ()
        return [p.id for p in placements if p.intent is Intent.DRAIN], decision.memory

    at_first, memory = drained(Memory(), 0.0, frozenset())
    connected, memory = drained(memory, 1.0, frozenset({engine}))
    gone, memory = drained(memory, 100.0, frozenset())
    assert (at_first, connected, gone) == ([], [], [])
    assert drained(memory, 110.0, frozenset())[0] == [engine[0]]
