"""Which nodes are not waited for any longer. Pure: the leader keeps it between its passes, by its own steady clock.

A node without its key is unverified, no more: its agent may be restarting, or etcd may have lost the lease. It is lost
when that lasts longer than the grace. One node at a time is lost, and none while many are away together, for then the
store or the network is to be suspected, and whoever re-places a third of a fleet does more harm than good. A person
knows better: `deepinfer node lost NAME` skips the wait and the brake.

An engine of a lost node that answers is kept. One that falls silent may be between two connections, and a leader that
has just started has none yet, so it is waited for a moment.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from dataclasses import dataclass, field

from deepinfer.fleet import keys
from deepinfer.fleet.resources import Absence, Intent
from deepinfer.fleet.snapshot import Snapshot

BRAKE_FROM = 2  # nodes away together
BRAKE_SHARE = 1 / 3
PAUSE_SECONDS = 10.0  # between one loss and the next
SILENCE_SECONDS = 10.0  # of an engine on a lost node, before it is lost too
Engine = tuple[str, int]  # placement id and epoch


@dataclass(frozen=True)
class Attendance:
    """Who is away since when, by the leader's clock, and who is given up."""

    away_since: Mapping[str, float] = field(default_factory=dict)
    lost: frozenset[str] = frozenset()
    last_loss: float = float("-inf")
    brake: str = ""  # why nobody is given up now
    silent_since: Mapping[Engine, float] = field(default_factory=dict)  # of nodes that are away
    waited_for: frozenset[Engine] = frozenset()  # of lost nodes, and not silent for long


def attended(
    before: Attendance, fleet: Snapshot, now: float, grace_seconds: float, answering: Container[Engine] | None = None
) -> Attendance:
    """The attendance as of `now`, which never runs backwards. Where nobody asks engines, none is waited for."""
    away = _away(fleet)
    since = {name: before.away_since.get(name, now) for name in away}
    declared = {settings.node for settings in fleet.node_settings if settings.lost} & away
    lost = (before.lost & away) | declared
    suspects = away - lost
    brake = _brake(len(suspects), len(suspects) + len(fleet.nodes))
    overdue = sorted((since[name], name) for name in suspects if now - since[name] >= grace_seconds)
    last_loss = before.last_loss
    if overdue and not brake and now - last_loss >= PAUSE_SECONDS:
        lost, last_loss = lost | {overdue[0][1]}, now
    asked = _engines(fleet, away) if answering is not None else {}
    silent = {engine: node for engine, node in asked.items() if engine not in (answering or ())}
    silent_since = {engine: before.silent_since.get(engine, now) for engine in silent}
    patience = min(SILENCE_SECONDS, grace_seconds)
    patient_with = lost - (declared - before.lost)  # whoever just says that a node is lost does not want to wait
    waited_for = {e for e, node in silent.items() if node in patient_with and now - silent_since[e] < patience}
    return Attendance(since, lost, last_loss, brake, silent_since, frozenset(waited_for))


def due(attendance: Attendance, grace_seconds: float) -> float:
    """When somebody is to be given up if nothing changes until then; infinity if only a change could lead to that."""
    patience = min(SILENCE_SECONDS, grace_seconds)
    silent = min((attendance.silent_since[engine] + patience for engine in attendance.waited_for), default=math.inf)
    overdue = [since + grace_seconds for name, since in attendance.away_since.items() if name not in attendance.lost]
    if not overdue or attendance.brake:
        return silent
    return min(silent, max(min(overdue), attendance.last_loss + PAUSE_SECONDS))


def absences(attendance: Attendance, fleet: Snapshot, now: str) -> tuple[Absence, ...]:
    """What is told of it, as of the time `now` for who is missed newly."""
    before = {absence.node: absence for absence in fleet.absences}
    return tuple(
        Absence(
            node=name,
            since=before[name].since if name in before else now,
            lost=name in attendance.lost,
            held="" if name in attendance.lost else attendance.brake,
        )
        for name in sorted(attendance.away_since)
    )


def _away(fleet: Snapshot) -> frozenset[str]:
    """Nodes that should run something and have no key; one that cannot be read is there."""
    there = {node.name for node in fleet.nodes}
    there |= {key.removeprefix(keys.NODES) for key in fleet.unreadable if key.startswith(keys.NODES)}
    fenced = {p.node for p in fleet.placements if p.intent is Intent.DRAIN and p.why.endswith(" is lost")}
    serving = {p.node for p in fleet.placements if p.intent is Intent.SERVE}
    return frozenset((serving | fenced) - there)


def _engines(fleet: Snapshot, away: frozenset[str]) -> Mapping[Engine, str]:
    """What should serve on these nodes, and where."""
    serving = (p for p in fleet.placements if p.intent is Intent.SERVE) if away else ()
    return {(p.id, p.epoch): p.node for p in serving if p.node in away}


def _brake(away: int, all_known: int) -> str:
    if away < BRAKE_FROM or away <= all_known * BRAKE_SHARE:
        return ""
    return (
        f"{away} of {all_known} nodes are away together, so the store or the network is suspected and nothing is "
        "re-placed; `deepinfer node lost NAME` says that one will not come back"
    )
