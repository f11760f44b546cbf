"""When a generation is complete, stalled or rolled back, and what its deployment's conditions then say."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from deepinfer.control_plane.scheduler.foresight import foreseen, with_agents_work
from deepinfer.control_plane.scheduler.judgement import Verdicts, judged
from deepinfer.control_plane.scheduler.plan import plan, planned
from deepinfer.control_plane.scheduler.sight import Sight
from deepinfer.control_plane.scheduler.standing import standings
from deepinfer.fleet.conditions import Aspect
from deepinfer.fleet.resources import Intent, NodeSettings, Phase, ReplicaStatus
from deepinfer.fleet.rollout import Outcome
from deepinfer.fleet.snapshot import Snapshot
from tests.decisions.test_plan import deployment, node, ready

DEADLINE: dict[str, Any] = {"rollout": {"deadline_seconds": 100}}
NODES = (node("a", cuda=1), node("b"))


def step(fleet: Snapshot, now: float, paces: Any = None) -> tuple[Snapshot, Verdicts]:
    """One pass of the leader."""
    verdicts = judged(Sight(fleet), paces or {}, now)
    fleet = dataclasses.replace(fleet, rollouts=verdicts.rollouts)
    fleet = planned(fleet, plan(fleet))
    return dataclasses.replace(fleet, conditions=standings(Sight(fleet), f"at {now:g}")), verdicts


def complete(**spec: Any) -> Snapshot:
    """Generation 1 runs and is known to be good."""
    fleet, _ = step(Snapshot(deployments=(deployment(**DEADLINE, **spec),), nodes=NODES), 0.0)
    fleet, verdicts = step(with_agents_work(fleet), 1.0)
    assert [(r.generation, r.outcome) for r in verdicts.rollouts] == [(1, Outcome.COMPLETE)]
    return fleet


def changed(fleet: Snapshot, **spec: Any) -> Snapshot:
    return dataclasses.replace(fleet, deployments=(deployment(generation=2, **{**DEADLINE, **spec}),))


def with_news(fleet: Snapshot, news: dict[str, Any]) -> Snapshot:
    """What agents say of generation 2; of generation 1 they say that it is ready."""
    statuses = tuple(
        ready(p) if p.generation == 1 else ready(p).model_copy(update=news)
        for p in fleet.placements
        if p.intent is Intent.SERVE
    )
    return dataclasses.replace(fleet, statuses=statuses)


def conditions(fleet: Snapshot) -> dict[Aspect, tuple[bool, str]]:
    return {c.aspect: (c.holds, c.reason) for c in fleet.conditions[0].conditions}


STARTING = {"phase": Phase.STARTING}
CRASHING = {"phase": Phase.FAILED, "failures": 3, "message": "it fell over"}


@pytest.mark.parametrize(
    ("news", "reason"),
    [
        (CRASHING, "failed 3 times in a row: it fell over"),
        ({"phase": Phase.FAILED, "given_up": True, "message": "no such flag"}, "is not tried again: no such flag"),
    ],
)
def test_a_generation_that_will_not_start_is_rolled_back_at_once(news: dict[str, Any], reason: str) -> None:
    fleet, verdicts = step(changed(complete(), max_model_len=64), 2.0)
    assert [p.generation for p in fleet.placements] == [1, 2]
    fleet, verdicts = step(with_news(fleet, news), 3.0, verdicts.paces)
    rollout = verdicts.rollouts[0]
    assert (rollout.outcome, rollout.good and rollout.good.generation) == (Outcome.ROLLED_BACK, 1)
    assert rollout.reason.endswith(reason)
    assert [(p.generation, p.intent) for p in fleet.placements] == [(1, "serve"), (2, "drain")]
    fleet = with_agents_work(fleet)
    end, verdicts = step(fleet, 4.0, verdicts.paces)
    assert [(p.id, p.generation) for p in end.placements] == [("chat-aaaaa-0", 1)]
    assert conditions(end) == {
        Aspect.ACCEPTED: (False, "RolledBack"),
        Aspect.SCHEDULED: (True, "Placed"),
        Aspect.PROGRESSING: (False, "Complete"),
        Aspect.AVAILABLE: (True, "EnoughReady"),
        Aspect.DEGRADED: (True, "RolledBack"),
    }


def test_a_generation_without_progress_is_rolled_back_at_its_deadline_which_progress_moves() -> None:
    fleet, verdicts = step(changed(complete(replicas=2), replicas=2, max_model_len=64), 10.0)
    fleet, verdicts = step(with_news(fleet, STARTING), 11.0, verdicts.paces)
    fleet, verdicts = step(with_news(fleet, STARTING), 50.0, verdicts.paces)
    assert verdicts.paces["chat"].due == 111.0
    fleet, verdicts = step(with_agents_work(fleet), 60.0, verdicts.paces)  # the first of two is ready
    assert verdicts.paces["chat"].due == 160.0
    one_ready = [p.id for p in fleet.placements if p.generation == 2][:1]
    fleet = dataclasses.replace(
        fleet,
        statuses=tuple(
            ready(p) if p.generation == 1 or p.id in one_ready else ready(p).model_copy(update=STARTING)
            for p in fleet.placements
            if p.intent is Intent.SERVE
        ),
    )
    fleet, verdicts = step(fleet, 70.0, verdicts.paces)
    due = verdicts.paces["chat"].due
    fleet, verdicts = step(fleet, due - 1, verdicts.paces)
    assert verdicts.rollouts[0].outcome is Outcome.PROGRESSING
    fleet, verdicts = step(fleet, due, verdicts.paces)
    assert (verdicts.rollouts[0].outcome, verdicts.rollouts[0].reason) == (
        Outcome.ROLLED_BACK,
        "no progress for 100 s",
    )
    end = foreseen(fleet).plan
    assert [(p.generation, p.spec.max_model_len) for p in end.placements] == [(1, None), (1, None)]


def test_a_rolled_back_deployment_scales_with_the_good_spec_and_a_new_generation_is_tried_anew() -> None:
    fleet, verdicts = step(changed(complete(), max_model_len=64), 2.0)
    fleet, verdicts = step(with_news(fleet, CRASHING), 3.0, verdicts.paces)
    third = deployment(generation=3, max_model_len=128, **DEADLINE)
    fleet = dataclasses.replace(with_agents_work(fleet), deployments=(third,))
    fleet, verdicts = step(fleet, 4.0, verdicts.paces)
    assert verdicts.rollouts[0].outcome is Outcome.PROGRESSING
    assert [(p.generation, p.spec.max_model_len) for p in fleet.placements] == [(1, None), (3, 128)]


def test_the_first_generation_has_nothing_to_go_back_to() -> None:
    fleet, verdicts = step(Snapshot(deployments=(deployment(**DEADLINE),), nodes=NODES), 0.0)
    failed = with_news(fleet, {})
    failed = dataclasses.replace(
        failed, statuses=tuple(s.model_copy(update=CRASHING) for s in map(_told, fleet.placements))
    )
    fleet, verdicts = step(failed, 1.0, verdicts.paces)
    assert verdicts.rollouts[0].outcome is Outcome.STALLED
    assert conditions(fleet)[Aspect.PROGRESSING] == (False, "Stalled")
    assert conditions(fleet)[Aspect.DEGRADED] == (True, "ReplicaFailed")
    fleet, verdicts = step(with_agents_work(fleet), 2.0, verdicts.paces)
    assert verdicts.rollouts[0].outcome is Outcome.COMPLETE, "it may yet recover"


def _told(placement: Any) -> ReplicaStatus:
    return ready(placement)


def test_a_change_of_the_number_alone_is_never_rolled_back() -> None:
    fleet, verdicts = step(changed(complete(device="cuda:0"), device="cuda:0", replicas=3), 2.0)
    fleet, verdicts = step(fleet, 1000.0, verdicts.paces)
    assert verdicts.rollouts[0].outcome is Outcome.STALLED
    assert [p.generation for p in fleet.placements] == [1]
    assert conditions(fleet)[Aspect.SCHEDULED] == (False, "NoRoom")


def test_what_can_go_no_further_is_not_said_to_progress() -> None:
    drained = (NodeSettings(node="a", drain=True),)
    stuck, _ = step(dataclasses.replace(complete(device="cuda:0"), node_settings=drained), 3.0)
    assert conditions(stuck)[Aspect.PROGRESSING] == (False, "NoRoom")
    assert conditions(stuck)[Aspect.SCHEDULED] == (False, "NoRoom")
    elsewhere, _ = step(dataclasses.replace(stuck, nodes=(*NODES, node("c", cuda=1))), 4.0)
    assert conditions(elsewhere)[Aspect.PROGRESSING] == (True, "Moving")


def test_a_stalled_generation_replaces_nothing_more() -> None:
    fleet, verdicts = step(
        Snapshot(deployments=(deployment(replicas=3, device="cuda:0", **DEADLINE),), nodes=NODES), 0.0
    )
    fleet, verdicts = step(with_agents_work(fleet), 1.0, verdicts.paces)
    assert [r.outcome for r in verdicts.rollouts] == [Outcome.PROGRESSING], "one of three has a place"
    fleet, verdicts = step(changed(fleet, replicas=3, device="cuda:7"), 2.0, verdicts.paces)
    assert conditions(fleet)[Aspect.PROGRESSING] == (True, "Replacing")
    fleet, verdicts = step(fleet, 102.0, verdicts.paces)
    assert verdicts.rollouts[0].outcome is Outcome.STALLED
    assert conditions(fleet)[Aspect.PROGRESSING] == (False, "Stalled")


def test_a_generation_without_room_is_rolled_back_and_the_refusal_goes() -> None:
    fleet, verdicts = step(changed(complete(), device="cuda:5"), 2.0)
    assert [r.missing for r in fleet.refusals] == [1]
    fleet, verdicts = step(fleet, 102.0, verdicts.paces)
    assert verdicts.rollouts[0].outcome is Outcome.ROLLED_BACK
    assert fleet.refusals == ()


def test_a_condition_keeps_its_time_until_it_turns() -> None:
    fleet = complete()
    times = {c.aspect: c.since for c in fleet.conditions[0].conditions}
    assert (times[Aspect.ACCEPTED], times[Aspect.AVAILABLE]) == ("at 0", "at 1")
    again, _ = step(fleet, 50.0)
    assert again.conditions == fleet.conditions


def test_what_is_written_of_an_unreadable_deployment_stays() -> None:
    fleet = complete()
    unreadable = dataclasses.replace(
        fleet, deployments=(), unreadable={"/deepinfer/deployments/chat": "model: Field required"}
    )
    kept, verdicts = step(unreadable, 9.0)
    assert (verdicts.rollouts, kept.conditions) == (fleet.rollouts, fleet.conditions)
