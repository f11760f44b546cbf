"""All that the leader concludes from one look at the fleet. Pure; what it must remember, it is given and gives back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from deepinfer.control_plane.scheduler.attendance import Attendance, absences, attended, due
from deepinfer.control_plane.scheduler.changes import Change, changes_between
from deepinfer.control_plane.scheduler.happenings import Happening, Look, happenings
from deepinfer.control_plane.scheduler.judgement import Pace, judged
from deepinfer.control_plane.scheduler.layouts import layouts
from deepinfer.control_plane.scheduler.plan import plan, planned
from deepinfer.control_plane.scheduler.sight import Outlook, Sight
from deepinfer.control_plane.scheduler.standing import standings
from deepinfer.fleet.snapshot import Snapshot


@dataclass(frozen=True)
class Circumstances:
    """What is known besides the store."""

    now: float  # seconds, by a clock that never runs backwards
    told_at: str  # the time for people, ISO 8601, UTC
    answering: frozenset[tuple[str, int]] | None = None  # see `Outlook`
    node_grace_seconds: float = 60.0


@dataclass(frozen=True)
class Memory:
    """Of one leadership: it begins empty, so nothing that a clock decides is cut short by a change of leaders."""

    attendance: Attendance = field(default_factory=Attendance)
    paces: Mapping[str, Pace] = field(default_factory=dict)
    last: Look | None = None


@dataclass(frozen=True)
class Decision:
    """What is to be written and told, and remembered once it is."""

    changes: tuple[Change, ...]
    happened: tuple[Happening, ...]
    memory: Memory
    due: float  # when to look again although nothing changed; infinity where only changes matter


def decided(fleet: Snapshot, memory: Memory, known: Circumstances) -> Decision:
    """Rollouts first, for the plan follows from them; then conditions, which tell how the plan leaves the fleet."""
    before = _known_before(memory, fleet)
    attendance = attended(before, fleet, known.now, known.node_grace_seconds, known.answering)
    outlook = Outlook(attendance.lost, known.answering, attendance.waited_for)
    verdicts = judged(Sight(fleet, outlook), memory.paces, known.now)
    wanted = fleet.but(rollouts=verdicts.rollouts)
    wanted = planned(wanted, plan(wanted, outlook))
    wanted = wanted.but(layouts=layouts(Sight(wanted, outlook)))
    wanted = wanted.but(
        conditions=standings(Sight(wanted, outlook), known.told_at),
        absences=absences(attendance, wanted, known.told_at),
    )
    look = Look(wanted, attendance)
    deadlines = (pace.due for pace in verdicts.paces.values())
    return Decision(
        changes=changes_between(fleet, wanted),
        happened=tuple(happenings(memory.last, look)) if memory.last else (),
        memory=Memory(attendance, verdicts.paces, look),
        due=min(due(attendance, known.node_grace_seconds), *deadlines, math.inf),
    )


def _known_before(memory: Memory, fleet: Snapshot) -> Attendance:
    """Whom an earlier leader gave up stays given up."""
    if memory.last is not None:
        return memory.attendance
    return Attendance(lost=frozenset(absence.node for absence in fleet.absences if absence.lost))
