"""What happened between two looks at the fleet, in words for people. Pure.

One event for each deployment and kind of thing, however many replicas it happened to.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from deepinfer.control_plane.scheduler.attendance import Attendance
from deepinfer.fleet.resources import Intent, Phase, Placement
from deepinfer.fleet.rollout import Outcome
from deepinfer.fleet.snapshot import Snapshot, only_in

_NAMED = 3  # replicas named in one event


@dataclass(frozen=True, slots=True)
class Happening:
    """An event without its time."""

    about: str
    reason: str
    message: str


@dataclass(frozen=True)
class Look:
    """The fleet as planned, and who is away."""

    fleet: Snapshot
    attendance: Attendance


def happenings(before: Look, now: Look) -> Iterator[Happening]:
    """In the order in which a person tells them."""
    yield from _of_nodes(before, now)
    yield from _of_rollouts(before.fleet, now.fleet)
    yield from _of_placements(before.fleet, now.fleet)
    yield from _of_engines(before.fleet, now.fleet)
    yield from _of_refusals(before.fleet, now.fleet)


def _of_nodes(before: Look, now: Look) -> Iterator[Happening]:
    then, there = ({node.name: node for node in look.fleet.nodes} for look in (before, now))
    for name in sorted(there.keys() - then.keys()):
        yield Happening(f"nodes/{name}", "Connected", f"node {name} is connected")
    for name in sorted(then.keys() - there.keys()):
        yield Happening(f"nodes/{name}", "Away", f"node {name} is not connected; its engines may serve on")
    for name in sorted(now.attendance.lost - before.attendance.lost):
        yield Happening(
            f"nodes/{name}", "Lost", f"node {name} is given up; what does not answer there gets another place"
        )
    for name in sorted(there.keys() & then.keys()):
        if there[name].pressure != then[name].pressure:
            told = "; ".join(there[name].pressure) or f"node {name} has room again"
            yield Happening(f"nodes/{name}", "Pressure" if there[name].pressure else "Relieved", told)
    if now.attendance.brake and not before.attendance.brake:
        yield Happening("fleet", "Brake", now.attendance.brake)


def _of_rollouts(before: Snapshot, now: Snapshot) -> Iterator[Happening]:
    then = {rollout.deployment: rollout for rollout in before.rollouts}
    for rollout in now.rollouts:
        old = then.get(rollout.deployment)
        if old and (old.uid, old.generation, old.outcome) == (rollout.uid, rollout.generation, rollout.outcome):
            continue
        text = f"generation {rollout.generation} is {rollout.outcome}"
        if rollout.outcome is Outcome.ROLLED_BACK and rollout.good:
            text = f"generation {rollout.generation} is rolled back to generation {rollout.good.generation}"
        reason = rollout.outcome.title().replace("-", "")
        yield Happening(_about(rollout.deployment), reason, f"{text}: {rollout.reason}" if rollout.reason else text)


def _of_placements(before: Snapshot, now: Snapshot) -> Iterator[Happening]:
    then = {(p.node, p.id): p for p in before.placements}
    placed: dict[str, list[Placement]] = {}
    drained: dict[tuple[str, str], list[Placement]] = {}
    for placement in only_in(now.placements, before.placements):
        old = then.get((placement.node, placement.id))
        if placement.intent is Intent.SERVE and (old is None or old.epoch != placement.epoch):
            placed.setdefault(placement.deployment, []).append(placement)
        elif placement.intent is Intent.DRAIN and (old is None or old.intent is Intent.SERVE):
            drained.setdefault((placement.deployment, placement.why), []).append(placement)
    for deployment, some in placed.items():
        yield Happening(
            _about(deployment), "Placed", _named([f"{p.id} on {p.node} ({','.join(p.devices)})" for p in some])
        )
    for (deployment, why), some in drained.items():
        text = _named([f"{p.id} on {p.node}" for p in some])
        yield Happening(_about(deployment), "Draining", f"{text}: {why}" if why else text)


def _of_engines(before: Snapshot, now: Snapshot) -> Iterator[Happening]:
    reasons: Mapping[Phase, str] = {Phase.READY: "Ready", Phase.FAILED: "Failed", Phase.RESTARTING: "Restarting"}
    told: dict[tuple[str, Phase], list[str]] = {}
    news = {(s.id, s.node, s.epoch): s for s in only_in(now.statuses, before.statuses) if s.phase in reasons}
    for placement in now.placements if news else ():
        status = news.get((placement.id, placement.node, placement.epoch))
        if status is None:
            continue
        old = before.status_of(placement)
        if old and (old.phase, old.failures) == (status.phase, status.failures):
            continue
        words = f"{placement.id}: {status.message}" if status.message else placement.id
        told.setdefault((placement.deployment, status.phase), []).append(words)
    for (deployment, phase), words_of in told.items():
        yield Happening(_about(deployment), reasons[phase], _named(words_of))


def _of_refusals(before: Snapshot, now: Snapshot) -> Iterator[Happening]:
    then = {refusal.deployment: refusal for refusal in before.refusals}
    for refusal in now.refusals:
        old = then.get(refusal.deployment)
        if old is None or old.missing != refusal.missing:
            reasons = refusal.told or "no node is connected"
            yield Happening(_about(refusal.deployment), "NoRoom", f"{refusal.missing} without a place: {reasons[:500]}")


def _about(deployment: str) -> str:
    return f"deployments/{deployment}"


def _named(words: Sequence[str]) -> str:
    more = len(words) - _NAMED
    return ", ".join(words[:_NAMED]) + (f" and {more} more" if more > 0 else "")
