"""Whether an engine may be started on its devices. Pure: who holds them in, what to do first out.

What is not ours is never ended: it is named, and waited for. What is ours and belongs to no replica of this node is a
left-over of an earlier engine, and is ended. An ended process that a device still lists is given time to be forgotten.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deepinfer.agent.launching import Mark

FORGOTTEN_AFTER_SECONDS = 30.0
_MOST = 0.5
"""The share of a device's memory that foreign processes may hold together: a desktop does no harm."""


@dataclass(frozen=True, slots=True)
class Holder:
    """One process on one device."""

    device: str
    pid: int
    name: str  # "" when it has ended
    share: float  # of the device's memory
    mark: Mark | None = None  # of this agent's engines


@dataclass(frozen=True, slots=True)
class Free:
    """Start."""


@dataclass(frozen=True, slots=True)
class EndThese:
    """Left-overs of ours, by their marks."""

    marks: tuple[Mark, ...]


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing can be done but tell it."""

    message: str
    needs_help: bool = False  # it will not end by itself


Step = Free | EndThese | Wait


def next_step(holders: Sequence[Holder], in_charge: frozenset[Mark], waited_seconds: float) -> Step:
    """`in_charge`: the marks of engines that replicas of this node look after."""
    leftovers = dict.fromkeys(holder.mark for holder in holders if holder.mark and holder.mark not in in_charge)
    if leftovers:
        return EndThese(tuple(leftovers))
    ours = next((holder for holder in holders if holder.mark), None)
    if ours is not None:
        return Wait(f"device {ours.device} is held by {ours.mark and ours.mark.placement} until that has ended")
    ended = next((holder for holder in holders if not holder.name), None)
    if ended is not None and waited_seconds < FORGOTTEN_AFTER_SECONDS:
        return Wait(f"device {ended.device} still holds the memory of process {ended.pid}, which has ended")
    foreign = _foreign(holders)
    return Free() if foreign is None else Wait(_plea(foreign), needs_help=True)


def _foreign(holders: Sequence[Holder]) -> Holder | None:
    """The one that holds most, of a device that is mostly held."""
    for device in dict.fromkeys(holder.device for holder in holders):
        here = [holder for holder in holders if holder.device == device]
        if sum(holder.share for holder in here) > _MOST:
            return max(here, key=lambda holder: holder.share)
    return None


def _plea(holder: Holder) -> str:
    who = f"process {holder.pid} ({holder.name or 'of another container'})"
    return f"device {holder.device} is held by {who}, which is not ours; free it or choose another device"
