"""What this node should do next. Pure: no clock, no store, no process; time is a field of what was seen.

One action for every placement id that is wanted, seen or reported. Three rules stand above the table: without a reading
of the store nothing is concluded, a placement that cannot be read is left as it is, and while it is not known what an
earlier run left, nothing is started beside it and nothing is called gone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from deepinfer.fleet.resources import Intent, Placement
from deepinfer.fleet.spec import Backend


class Stage(StrEnum):
    """How far this node is with one placement."""

    ABSENT = "absent"
    PREPARING = "preparing"  # its model's files are being made; no process yet
    RUNNING = "running"  # a process group of ours is there
    ENDING = "ending"  # it was asked to end and is not verified gone
    CRASHED = "crashed"  # gone; may be tried again from `not_before` on
    REFUSED = "refused"  # gone; trying again will not help until its epoch changes


@dataclass(frozen=True)
class Seen:
    """What is really there of one placement."""

    id: str
    epoch: int
    stage: Stage
    not_before: float = 0.0


@dataclass(frozen=True)
class Wanted:
    """One reading of the store, as far as it concerns this node."""

    placements: tuple[Placement, ...] = ()
    unreadable: frozenset[str] = frozenset()  # ids that are there but cannot be understood
    reported: frozenset[str] = frozenset()  # ids that have a status
    is_recalled: bool = False  # from an earlier agent's note: what it lacks may be wanted all the same


@dataclass(frozen=True)
class Situation:
    """Everything a decision is made from."""

    now: float
    wanted: Wanted | None = None  # None: the store was never read, so nothing is known
    seen: Mapping[str, Seen] = field(default_factory=dict)
    closed: tuple[str, ...] = ()  # why nothing new is started here; empty: it is
    unseen: frozenset[Backend] = frozenset()  # they have not told yet what an earlier run left here


@dataclass(frozen=True)
class Start:
    placement: Placement


@dataclass(frozen=True)
class Hold:
    """It would start if this node took anything new."""

    placement: Placement
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Stop:
    """Let running requests finish, then end the process group."""

    id: str


@dataclass(frozen=True)
class Forget:
    """Nothing is left of it: remove its status and its files."""

    id: str


@dataclass(frozen=True)
class Wait:
    id: str
    until: float


@dataclass(frozen=True)
class Keep:
    id: str


Action = Start | Hold | Stop | Forget | Wait | Keep


def plan(situation: Situation) -> tuple[Action, ...]:
    """One action for each id, in the order of the ids."""
    return tuple(_actions(situation))


def _actions(situation: Situation) -> Iterator[Action]:
    wanted = situation.wanted
    if wanted is None:
        yield from (Keep(placement_id) for placement_id in sorted(situation.seen))
        return
    placements = {placement.id: placement for placement in wanted.placements}
    for placement_id in sorted({*placements, *situation.seen, *wanted.reported} - wanted.unreadable):
        seen = situation.seen.get(placement_id) or Seen(placement_id, 0, Stage.ABSENT)
        placement = placements.get(placement_id)
        is_reported = placement_id in wanted.reported
        if placement is not None and placement.intent is Intent.SERVE:
            action = _held(_serve(placement, seen, situation.now), seen, situation.closed)
        else:
            action = _end(seen, known=placement_id in situation.seen or is_reported)
        if placement is None and wanted.is_recalled:
            action = Keep(placement_id)
        if placement is not None and placement.spec.backend in situation.unseen:
            action = _waiting(action, placement, is_reported=is_reported or wanted.is_recalled)
        yield action
    yield from (Keep(placement_id) for placement_id in sorted(wanted.unreadable))


def _serve(placement: Placement, seen: Seen, now: float) -> Action:
    match seen.stage, seen.epoch == placement.epoch:
        case Stage.ABSENT, _:
            return Start(placement)
        case ((Stage.PREPARING | Stage.RUNNING | Stage.REFUSED), True):
            return Keep(seen.id)
        case Stage.CRASHED, True:
            return Start(placement) if now >= seen.not_before else Wait(seen.id, seen.not_before)
        case ((Stage.CRASHED | Stage.REFUSED), False):
            return Start(placement)  # what failed was another epoch
        case ((Stage.PREPARING | Stage.RUNNING), False) if placement.epoch > seen.epoch:
            return Stop(seen.id)  # the new epoch starts when this one's process group is verified gone
    # ENDING; or newer than its placement, as after an old backup was restored: its status tells the leader so.
    return Keep(seen.id)


def _held(action: Action, seen: Seen, closed: tuple[str, ...]) -> Action:
    """What ran here and crashed is tried again all the same: it is nothing new."""
    match action:
        case Start(placement) if closed and (seen.stage, seen.epoch) != (Stage.CRASHED, placement.epoch):
            return Hold(placement, closed)
    return action


def _waiting(action: Action, placement: Placement, *, is_reported: bool) -> Action:
    """Its engine may be there. What an earlier run reported of it stands until more is known."""
    match action:
        case Start() | Hold() | Forget() if is_reported:
            return Keep(placement.id)
        case Start():
            return Hold(placement, (f"{placement.spec.backend} has not told yet what runs here",))
        case Forget():
            return Keep(placement.id)
    return action


def _end(seen: Seen, *, known: bool) -> Action:
    """The leader asked for it, or removed a placement whose engine is still here."""
    match seen.stage:
        case Stage.PREPARING | Stage.RUNNING:
            return Stop(seen.id)
        case Stage.CRASHED | Stage.REFUSED:
            return Forget(seen.id)
        case Stage.ABSENT if known:
            return Forget(seen.id)
    return Keep(seen.id)
