"""What the plan comes to when every engine becomes ready and everything that drains ends. Pure.

It runs the plan itself, again and again, with the statuses that agents would report and with the engines that would
answer; so a dry run cannot differ from what then happens, except by what nobody can foresee: engines that fail, and
nodes that come and go.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from itertools import islice

from deepinfer.control_plane.scheduler.plan import Plan, plan, planned
from deepinfer.control_plane.scheduler.sight import Outlook
from deepinfer.fleet.resources import Intent, Phase, Placement, ReplicaStatus
from deepinfer.fleet.snapshot import Snapshot

MOST_STEPS = 1000


@dataclasses.dataclass(frozen=True)
class Foresight:
    """Where it ends, whether it was followed to its end, and why what went on the way went."""

    plan: Plan
    is_final: bool
    reasons: Mapping[tuple[str, str, int], str]  # by id, node and epoch


def foreseen(
    fleet: Snapshot,
    outlook: Outlook = Outlook(),  # noqa: B008  # a frozen value
    most_steps: int = MOST_STEPS,
) -> Foresight:
    """Nodes that are not there do nothing. A rollout of many replicas is followed for `most_steps` steps."""
    reasons: dict[tuple[str, str, int], str] = {}
    last = Plan((), ())
    for wanted in islice(steps(fleet, outlook), most_steps):
        if wanted == last:
            return Foresight(wanted, True, reasons)
        last = wanted
        for placement in wanted.placements:
            if placement.intent is Intent.DRAIN:
                reasons.setdefault((placement.id, placement.node, placement.epoch), placement.why)
    return Foresight(last, False, reasons)


def steps(fleet: Snapshot, outlook: Outlook) -> Iterator[Plan]:
    """Every plan on the way; the last one is repeated for ever."""
    while True:
        wanted = plan(fleet, outlook)
        yield wanted
        fleet = with_agents_work(planned(fleet, wanted))
        outlook = as_engines_answer(outlook, fleet)


def with_agents_work(fleet: Snapshot) -> Snapshot:
    """Every agent that is there serves what is wanted and has ended what drains."""
    alive = {node.name for node in fleet.nodes}
    away = tuple(status for status in fleet.statuses if status.node not in alive)
    return dataclasses.replace(fleet, statuses=(*away, *map(_ready, _serving(fleet, alive))))


def as_engines_answer(outlook: Outlook, fleet: Snapshot) -> Outlook:
    """What serves on a node that is there answers; elsewhere, what answered does so still."""
    if outlook.answering is None:
        return outlook
    alive = {node.name for node in fleet.nodes}
    away = {(p.id, p.epoch) for p in fleet.placements if p.node not in alive}
    serving = ((p.id, p.epoch) for p in _serving(fleet, alive))
    return dataclasses.replace(outlook, answering=(outlook.answering & away).union(serving))


def _serving(fleet: Snapshot, alive: set[str]) -> Iterator[Placement]:
    return (p for p in fleet.placements if p.node in alive and p.intent is Intent.SERVE)


def _ready(placement: Placement) -> ReplicaStatus:
    return ReplicaStatus(id=placement.id, epoch=placement.epoch, node=placement.node, phase=Phase.READY)
