"""A deployment's phase and sentence: values in, values out."""

from __future__ import annotations

import pytest

from deepinfer.control_plane.management.progress import Stage, progress
from deepinfer.control_plane.management.views import ReplicaView
from deepinfer.fleet.resources import Intent, Phase, Refusal
from deepinfer.fleet.rollout import Good, Outcome, Rollout
from deepinfer.fleet.spec import DeploymentSpec
from tests.fleet_values import UID, deployment

NEW = ReplicaView(
    id="chat-new",
    deployment="chat",
    replica=1,
    epoch=2,
    generation=2,
    node="node-1",
    node_alive=True,
    devices=("cpu",),
    intent=Intent.SERVE,
    phase=Phase.READY,
)
STARTING = NEW.model_copy(update={"phase": Phase.STARTING, "message": "loading"})
FAILED = NEW.model_copy(update={"phase": Phase.FAILED, "message": "no such weights"})
OLD = NEW.model_copy(update={"id": "chat-old", "generation": 1, "replica": 0})
DRAINING = OLD.model_copy(update={"intent": Intent.DRAIN})
NO_ROOM = Refusal(deployment="chat", missing=1, reasons={"node-1": "is full"})
WAITS = NO_ROOM.model_copy(update={"waits_for": "chat-old to drain on node-1"})
GOOD = Good(generation=1, spec=DeploymentSpec(model="org/earlier"))


def rollout(outcome: Outcome, good: Good | None = None, reason: str = "") -> Rollout:
    return Rollout(deployment="chat", uid=UID, generation=2, outcome=outcome, good=good, reason=reason)


def stage(
    *,
    current: tuple[ReplicaView, ...] = (),
    outdated: tuple[ReplicaView, ...] = (),
    refusal: Refusal | None = None,
    rollout: Rollout | None = None,
    replicas: int = 1,
) -> Stage:
    wanted = deployment(replicas=replicas).model_copy(update={"generation": 2})
    return Stage(deployment=wanted, current=current, outdated=outdated, refusal=refusal, rollout=rollout)


@pytest.mark.parametrize(
    ("known", "phase", "message"),
    [
        (stage(current=(NEW,)), "ready", ""),
        (stage(current=(NEW,), outdated=(DRAINING,)), "ready", ""),
        (stage(current=(STARTING,), outdated=(OLD,)), "progressing", "chat-new on node-1: loading"),
        (stage(outdated=(OLD,)), "progressing", "chat-old is to be replaced on node-1"),
        (stage(outdated=(DRAINING,)), "progressing", "chat-old drains on node-1"),
        (stage(replicas=0), "stopped", "it has 0 replicas"),
        (stage(refusal=NO_ROOM), "refused", "1 without a place: node-1 is full"),
        (stage(refusal=WAITS), "progressing", "1 without a place yet: waits for chat-old to drain on node-1"),
        (
            stage(outdated=(OLD,), refusal=NO_ROOM),
            "refused",
            "the old replicas serve on, 1 new without a place: node-1 is full",
        ),
        (stage(outdated=(DRAINING,), refusal=NO_ROOM), "refused", "1 without a place: node-1 is full"),
        (stage(current=(FAILED,)), "failed", "chat-new on node-1: no such weights"),
    ],
)
def test_a_stage_in_a_word_and_a_sentence(known: Stage, phase: str, message: str) -> None:
    told = progress(known)
    assert (told.phase, told.message, told.outcome) == (phase, message, Outcome.PROGRESSING)


@pytest.mark.parametrize(
    ("known", "phase"),
    [
        (stage(current=(FAILED,), outdated=(OLD,)), "progressing"),
        (stage(current=(FAILED,), rollout=rollout(Outcome.PROGRESSING, GOOD)), "progressing"),
        (stage(current=(FAILED,), rollout=rollout(Outcome.STALLED, GOOD)), "failed"),
        (stage(current=(FAILED,), rollout=rollout(Outcome.COMPLETE, GOOD)), "failed"),
        (stage(current=(FAILED,), outdated=(OLD,), rollout=rollout(Outcome.STALLED)), "failed"),
    ],
)
def test_a_failure_is_not_final_while_something_good_serves_on_or_may_come_back(known: Stage, phase: str) -> None:
    told = progress(known)
    assert (told.phase, told.message) == (phase, "chat-new on node-1: no such weights")


def test_what_was_rolled_back_is_ready_with_the_reason() -> None:
    gone = rollout(Outcome.ROLLED_BACK, GOOD, "it crashed.")
    told = progress(stage(current=(NEW,), rollout=gone))
    assert (told.phase, told.message) == ("ready", "generation 2 was rolled back: it crashed; generation 1 runs")
    starting = progress(stage(current=(STARTING,), rollout=gone))
    assert (starting.phase, starting.message.endswith("generation 1 runs; chat-new on node-1: loading")) == (
        "progressing",
        True,
    )
