"""What an agent does next, as a table and as properties."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepinfer.agent.plan import Forget, Hold, Keep, Seen, Situation, Stage, Start, Stop, Wait, Wanted, plan
from deepinfer.agent.restarts import FORGIVEN_AFTER_SECONDS, Restarts
from deepinfer.fleet.resources import Intent, Phase, Placement, ReplicaStatus
from deepinfer.fleet.spec import Backend, DeploymentSpec
from tests.fleet_values import placement

ID = placement().id
SERVE = placement(epoch=2)
DRAIN = placement(epoch=2, intent=Intent.DRAIN)
BOXED = DeploymentSpec(model="org/model", model_path="/model", backend=Backend.DOCKER, docker_image="vllm/vllm-openai")
GONE = None


@pytest.mark.parametrize(
    ("wanted", "seen", "action"),
    [
        (SERVE, None, Start(SERVE)),
        (SERVE, Seen(ID, 2, Stage.ABSENT), Start(SERVE)),
        (SERVE, Seen(ID, 2, Stage.PREPARING), Keep(ID)),
        (SERVE, Seen(ID, 2, Stage.RUNNING), Keep(ID)),
        (SERVE, Seen(ID, 2, Stage.ENDING), Keep(ID)),
        (SERVE, Seen(ID, 2, Stage.CRASHED, not_before=11), Wait(ID, 11)),
        (SERVE, Seen(ID, 2, Stage.CRASHED, not_before=10), Start(SERVE)),
        (SERVE, Seen(ID, 2, Stage.REFUSED), Keep(ID)),
        # an older epoch: its process group is verified gone before the new one starts
        (SERVE, Seen(ID, 1, Stage.PREPARING), Stop(ID)),
        (SERVE, Seen(ID, 1, Stage.RUNNING), Stop(ID)),
        (SERVE, Seen(ID, 1, Stage.ENDING), Keep(ID)),
        (SERVE, Seen(ID, 1, Stage.ABSENT), Start(SERVE)),
        (SERVE, Seen(ID, 1, Stage.CRASHED, not_before=99), Start(SERVE)),
        (SERVE, Seen(ID, 1, Stage.REFUSED), Start(SERVE)),
        # a newer epoch: the placement comes from an old backup of the store
        (SERVE, Seen(ID, 3, Stage.PREPARING), Keep(ID)),
        (SERVE, Seen(ID, 3, Stage.RUNNING), Keep(ID)),
        (SERVE, Seen(ID, 3, Stage.ENDING), Keep(ID)),
        (SERVE, Seen(ID, 3, Stage.CRASHED, not_before=99), Start(SERVE)),
        (DRAIN, None, Keep(ID)),
        (DRAIN, Seen(ID, 2, Stage.ABSENT), Forget(ID)),
        (DRAIN, Seen(ID, 2, Stage.PREPARING), Stop(ID)),
        (DRAIN, Seen(ID, 2, Stage.RUNNING), Stop(ID)),
        (DRAIN, Seen(ID, 1, Stage.RUNNING), Stop(ID)),
        (DRAIN, Seen(ID, 2, Stage.ENDING), Keep(ID)),
        (DRAIN, Seen(ID, 2, Stage.CRASHED, not_before=99), Forget(ID)),
        (DRAIN, Seen(ID, 2, Stage.REFUSED), Forget(ID)),
        # the leader removed it
        (GONE, Seen(ID, 2, Stage.PREPARING), Stop(ID)),
        (GONE, Seen(ID, 2, Stage.RUNNING), Stop(ID)),
        (GONE, Seen(ID, 2, Stage.ENDING), Keep(ID)),
        (GONE, Seen(ID, 2, Stage.ABSENT), Forget(ID)),
        (GONE, Seen(ID, 2, Stage.CRASHED), Forget(ID)),
        (GONE, Seen(ID, 2, Stage.REFUSED), Forget(ID)),
    ],
)
def test_every_pair_has_its_action(wanted: Placement | None, seen: Seen | None, action: object) -> None:
    reading = Wanted(placements=(wanted,) if wanted else ())
    assert plan(Situation(10, reading, {ID: seen} if seen else {})) == (action,)


@pytest.mark.parametrize(
    ("seen", "action"),
    [
        (None, Hold(SERVE, ("it is full",))),
        (Seen(ID, 2, Stage.ABSENT), Hold(SERVE, ("it is full",))),
        (Seen(ID, 1, Stage.CRASHED), Hold(SERVE, ("it is full",))),
        (Seen(ID, 1, Stage.REFUSED), Hold(SERVE, ("it is full",))),
        (Seen(ID, 2, Stage.CRASHED), Start(SERVE)),  # it is nothing new
        (Seen(ID, 2, Stage.CRASHED, not_before=11), Wait(ID, 11)),
        (Seen(ID, 2, Stage.PREPARING), Keep(ID)),
        (Seen(ID, 2, Stage.RUNNING), Keep(ID)),
        (Seen(ID, 1, Stage.RUNNING), Stop(ID)),  # nobody is sent to an older epoch
    ],
)
def test_a_closed_node_starts_nothing_new_and_leaves_alone_what_runs(seen: Seen | None, action: object) -> None:
    there = {ID: seen} if seen else {}
    assert plan(Situation(10, Wanted((SERVE,)), there, closed=("it is full",))) == (action,)


@given(st.data())
def test_a_closed_node_ends_what_an_open_one_would(data: st.DataObject) -> None:
    situation = data.draw(situations())
    ending = [action for action in plan(situation) if isinstance(action, Stop | Forget)]
    closed = plan(replace(situation, closed=("it is full",)))
    assert [action for action in closed if isinstance(action, Stop | Forget)] == ending


def test_a_status_of_which_nothing_is_left_is_removed() -> None:
    assert plan(Situation(0, Wanted(reported=frozenset({ID})))) == (Forget(ID),)
    drained = Wanted(placements=(DRAIN,), reported=frozenset({ID}))
    assert plan(Situation(0, drained)) == (Forget(ID),)


@pytest.mark.parametrize(
    ("wanted", "seen", "reported", "action"),
    [
        (SERVE, None, False, Hold(SERVE, ("docker has not told yet what runs here",))),
        (SERVE, None, True, Keep(ID)),  # what an earlier agent reported of it stands
        (SERVE, Seen(ID, 2, Stage.ABSENT), True, Keep(ID)),  # held before
        (SERVE, Seen(ID, 1, Stage.RUNNING), True, Stop(ID)),  # by the backend that it had before
        (SERVE, Seen(ID, 1, Stage.CRASHED), True, Keep(ID)),
        (DRAIN, None, True, Keep(ID)),
        (DRAIN, Seen(ID, 2, Stage.ABSENT), False, Keep(ID)),
        (DRAIN, Seen(ID, 1, Stage.RUNNING), True, Stop(ID)),
        (GONE, None, True, Forget(ID)),  # nobody waits for it, and its container is ended when it is found
    ],
)
def test_while_docker_is_silent_its_containers_are_neither_gone_nor_started_again(
    wanted: Placement | None, seen: Seen | None, reported: bool, action: object
) -> None:
    boxed = [p.model_copy(update={"spec": BOXED}) for p in (wanted,) if p]
    reading = Wanted(tuple(boxed), reported=frozenset({ID} if reported else ()))
    expected = replace(action, placement=boxed[0]) if isinstance(action, Hold) else action
    situation = Situation(10, reading, {ID: seen} if seen else {}, unseen=frozenset({Backend.DOCKER}))
    assert plan(situation) == (expected,)
    assert plan(replace(situation, unseen=frozenset({Backend.NATIVE}))) == plan(replace(situation, unseen=frozenset()))


def test_a_container_of_which_only_a_note_tells_is_left_as_an_earlier_agent_reported_it() -> None:
    recalled = Wanted((SERVE.model_copy(update={"spec": BOXED}),), is_recalled=True)
    assert plan(Situation(10, recalled, unseen=frozenset({Backend.DOCKER}))) == (Keep(ID),)


def test_nothing_is_concluded_without_a_reading() -> None:
    seen = {ID: Seen(ID, 1, Stage.RUNNING), "b": Seen("b", 1, Stage.CRASHED)}
    assert plan(Situation(10, None, seen)) == (Keep("b"), Keep(ID))


def test_what_an_earlier_agents_note_lacks_is_left_alone() -> None:
    recalled = Wanted((SERVE, DRAIN.model_copy(update={"id": "c"})), is_recalled=True)
    seen = {"b": Seen("b", 1, Stage.RUNNING), "c": Seen("c", 2, Stage.RUNNING), "d": Seen("d", 1, Stage.CRASHED)}
    assert plan(Situation(10, recalled, seen)) == (Keep("b"), Stop("c"), Start(SERVE), Keep("d"))


def test_an_engine_whose_placement_cannot_be_read_is_left_alone() -> None:
    unreadable = Wanted(unreadable=frozenset({ID}), reported=frozenset({ID}))
    assert plan(Situation(10, unreadable, {ID: Seen(ID, 1, Stage.RUNNING)})) == (Keep(ID),)


IDS = ("a", "b", "c")
SEEN = st.builds(Seen, st.just(""), st.integers(1, 3), st.sampled_from(Stage), st.sampled_from([0.0, 20.0]))


@st.composite
def situations(draw: st.DrawFn) -> Situation:
    placements = [
        placement(epoch=draw(st.integers(1, 3)), intent=draw(st.sampled_from(Intent))).model_copy(update={"id": i})
        for i in IDS
        if draw(st.booleans())
    ]
    seen = {i: replace(draw(SEEN), id=i) for i in IDS if draw(st.booleans())}
    wanted = Wanted(
        tuple(placements), draw(st.frozensets(st.sampled_from(["c"]))), draw(st.frozensets(st.sampled_from(IDS)))
    )
    return Situation(10.0, wanted, seen)


def obeyed(situation: Situation) -> Situation:
    """The world after its actions were carried out, and what was under way came to its end."""
    assert situation.wanted is not None
    ends = {Stage.ENDING: Stage.ABSENT, Stage.PREPARING: Stage.RUNNING}
    seen = {i: replace(s, stage=ends.get(s.stage, s.stage)) for i, s in situation.seen.items()}
    reported = set(situation.wanted.reported)
    for action in plan(situation):
        match action:
            case Start(wanted):
                seen[wanted.id] = Seen(wanted.id, wanted.epoch, Stage.RUNNING)
                reported.add(wanted.id)
            case Stop(stopped):
                seen[stopped] = replace(seen[stopped], stage=Stage.ENDING)
            case Forget(forgotten):
                seen.pop(forgotten, None)
                reported.discard(forgotten)
    return replace(situation, seen=seen, wanted=replace(situation.wanted, reported=frozenset(reported)))


@given(situations())
def test_one_action_for_each_id(situation: Situation) -> None:
    ids = [action.placement.id if isinstance(action, Start | Hold) else action.id for action in plan(situation)]
    assert len(ids) == len(set(ids))


@given(situations())
def test_it_comes_to_rest_with_exactly_the_wanted_engines(situation: Situation) -> None:
    after = obeyed(obeyed(obeyed(obeyed(situation))))
    assert after == obeyed(after)
    assert all(isinstance(action, Keep | Wait) for action in plan(after))
    wanted = situation.wanted
    assert wanted is not None
    serve = {p.id: p.epoch for p in wanted.placements if p.intent is Intent.SERVE and p.id not in wanted.unreadable}
    at_rest = (Stage.RUNNING, Stage.CRASHED, Stage.REFUSED)
    there = {i: s.epoch for i, s in after.seen.items() if s.stage in at_rest and i not in wanted.unreadable}
    ran = {i: s.epoch for i, s in situation.seen.items() if s.stage in (Stage.PREPARING, Stage.RUNNING)}
    assert there == {i: max(epoch, ran.get(i, 0)) for i, epoch in serve.items()}


def test_backoff_doubles_to_five_minutes() -> None:
    restarts, waits = Restarts(), []
    for _ in range(11):
        restarts = restarts.after_failure(now=0, ready_seconds=5)
        waits.append(restarts.not_before)
    assert waits == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]


def test_ten_good_minutes_forgive_earlier_crashes() -> None:
    troubled = Restarts(total=7, in_a_row=7)
    assert troubled.after_failure(now=100, ready_seconds=FORGIVEN_AFTER_SECONDS) == Restarts(7, 1, 101)
    assert troubled.after_failure(now=100, ready_seconds=599).not_before == 100 + 128


def test_neither_another_agent_nor_another_process_forgives() -> None:
    told = ReplicaStatus(id=ID, epoch=1, node="node-1", phase=Phase.READY, restarts=4, failures=3)
    inherited = Restarts().and_before(told).after_start()
    assert (inherited.total, inherited.in_a_row) == (5, 3)
    assert inherited.after_failure(now=0, ready_seconds=1).not_before == 8
    assert inherited.forgiven() == Restarts(5, 0)
