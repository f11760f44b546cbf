"""Which stage lies where, of every replica in stages. Pure: from what is placed and what its processes tell.

What serves is left as it is. A stage that is lost, or whose process must go, is taken over by a spare with the same
layers; where there is none, or where stages are missing that could be there, the layers are cut anew over what is
there. A lost head is followed by another process, which begins anew: its requests go on through the gateway. A process
where a stage was lost is not seated again before it is another one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from deepinfer.control_plane.scheduler.fit import same_engine
from deepinfer.control_plane.scheduler.members import Member, cut, member, seat_of
from deepinfer.control_plane.scheduler.sight import Sight
from deepinfer.fleet.model_shape import ModelShape
from deepinfer.fleet.pipeline import Layout, Seat, hosts_name, is_hosts_name
from deepinfer.fleet.resources import Intent, Placement

Silent = dict[tuple[str, int], str]
"""Placements and their epochs, and where they listened when they were heard last."""


def layouts(sight: Sight) -> tuple[Layout, ...]:
    """Of the fleet as it will be once the plan is written; sorted by key."""
    found: list[Layout] = []
    for name, deployment in sight.deployments.items():
        if deployment.spec.pipeline is not None and not is_hosts_name(name):
            found += _of_deployment(name, sight)
    made = {layout.id for layout in found}
    found += [layout for layout in sight.fleet.layouts if layout.id not in made and layout.id in sight.placed]
    return tuple(sorted(found, key=lambda layout: layout.id))


def _still_serves(layout: Layout, sight: Sight) -> bool:
    """Its replica is placed: it may drain, or be on a node that is not there. Of an older epoch of it, a layout only
    says at which number to go on: hosts that stay up obey no lower one."""
    return any(p.epoch == layout.epoch for p in sight.placed.get(layout.id, ()))


def _of_deployment(name: str, sight: Sight) -> Iterator[Layout]:
    """Replicas by age; a process that one has is not free for another."""
    hosts = [one for p in sight.of_deployment.get(hosts_name(name), ()) if (one := member(p, sight))]
    silent = _silent(name, sight)
    before = {layout.id: layout for layout in sight.fleet.layouts}
    taken = {one for layout in before.values() if _still_serves(layout, sight) for one in _processes(layout)}
    replicas = [p for p in sight.of_deployment.get(name, ()) if p.intent is Intent.SERVE]
    for placement in sorted(replicas, key=lambda p: p.replica):
        had = before.get(placement.id)
        own = _processes(had) if had else set()
        members = [host for host in hosts if host.placement.id not in taken - own]
        if (itself := member(placement, sight)) is not None:
            members.insert(0, itself)
        alike = [one for one in members if same_engine(one.placement.spec, placement.spec)]
        made = _Replica(placement, had, alike, silent).layout()
        if made is not None:
            taken |= _processes(made)
            yield made


def _silent(name: str, sight: Sight) -> Silent:
    """Those of which nobody tells anything now: their node lost its lease, or cannot be read. That alone is no reason
    to replace them: who computes with them says when they are lost."""
    placed = (*sight.of_deployment.get(name, ()), *sight.of_deployment.get(hosts_name(name), ()))
    found: Silent = {}
    for placement in placed:
        status = sight.fleet.status_of(placement)
        waited_for = placement.node not in sight.verified and not sight.is_given_up(placement.node)
        if waited_for and status is not None and status.pipeline is not None and not sight.must_leave(placement):
            found[placement.id, placement.epoch] = status.pipeline.endpoint
    return found


def _processes(layout: Layout) -> set[str]:
    return {layout.head, *(seat.placement for seat in layout.seats)}


class _Replica:
    """One replica, in one pass."""

    def __init__(self, placement: Placement, had: Layout | None, members: Sequence[Member], silent: Silent) -> None:
        self._placement = placement
        self._last = had.number if had else 0
        self._had = had if had is not None and had.epoch == placement.epoch else None
        self._options = placement.spec.pipeline
        self._avoided = _avoided(self._had, members, silent)
        self._silent = {one: where for one, where in silent.items() if where not in self._avoided}
        usable = [one for one in members if one.state.endpoint not in self._avoided]
        head = self._present_head(usable) or self._next_head(usable)
        self._head = head
        self._others = [one for one in usable if one is not head and head and one.can_speak_to(head)]

    def layout(self) -> Layout | None:
        had, head = self._had, self._head
        if had is not None and (had.head, had.head_epoch) in self._silent:
            return had  # what it would say of its stages is not heard either
        if head is None or self._options is None:
            return had  # nobody is there
        if had is None:
            return self._first(head) if len(self._others) >= self._options.stages - 1 else None
        if head.placement.id != had.head:
            return self._anew(head, f"{had.head} was lost; ") or had
        return self._kept(had) or self._anew(head, "") or had

    def _present_head(self, usable: Sequence[Member]) -> Member | None:
        had = self._had
        if had is None:
            return None
        is_it = (one for one in usable if (one.placement.id, one.placement.epoch) == (had.head, had.head_epoch))
        return next(is_it, None)

    def _next_head(self, usable: Sequence[Member]) -> Member | None:
        """The replica's own process; else one that has no stage, which is the quickest."""
        seated = _processes(self._had) if self._had else set()
        order = sorted(usable, key=lambda one: (one.placement.id != self._placement.id, one.placement.id in seated))
        if self._had is None:
            return next((one for one in order if one.placement.id == self._placement.id), None)
        return next(iter(order), None)

    def _kept(self, had: Layout) -> Layout | None:
        """As it is, or with spares in the place of what is lost. None: the layers must be cut anew."""
        spares = [one for one in self._others if not any(one.sits_in(seat) for seat in had.seats)]
        seats, replaced = list[Seat](), list[str]()
        for seat in had.seats:
            is_silent = self._silent.get((seat.placement, seat.epoch)) == seat.endpoint
            if is_silent or any(one.sits_in(seat) for one in self._others):
                seats.append(seat)
            elif spares:
                replaced.append(f"{seat.placement} on {seat.node}")
                seats.append(seat_of(spares.pop(0), seat.layers))
            else:
                return None
        if spares and self._options and len(seats) + 1 < self._options.stages:
            return None  # one more can take part
        changes = {"avoided": self._avoided}
        if not replaced:
            return had if self._avoided == had.avoided else had.model_copy(update=changes)
        why = f"{', '.join(replaced)} replaced"
        return had.model_copy(update={**changes, "number": had.number + 1, "seats": tuple(seats), "why": why})

    def _first(self, head: Member) -> Layout | None:
        return self._cut(head, self._others, "")

    def _anew(self, head: Member, why: str) -> Layout | None:
        """Over what is there; None where the model does not fit."""
        seats = self._had.seats if self._had else ()
        by_use = sorted(self._others, key=lambda one: not any(one.sits_in(seat) for seat in seats))
        return self._cut(head, by_use, why)

    def _cut(self, head: Member, others: Sequence[Member], why: str) -> Layout | None:
        shape: ModelShape | None = head.state.shape
        if shape is None or self._options is None:
            return None
        chosen = sorted(others[: self._options.stages - 1], key=lambda one: one.placement.id)  # where it was before
        stages = cut(head, chosen, shape)
        if len(stages) < 2:
            return None  # a head alone is no pipeline
        made = Layout(
            id=self._placement.id,
            epoch=self._placement.epoch,
            number=self._last + 1,
            head=head.placement.id,
            head_epoch=head.placement.epoch,
            node=head.placement.node,
            layers=stages[0][1],
            seats=tuple(seat_of(one, layers) for one, layers in stages[1:]),
            avoided=self._avoided,
            why=f"{why}{shape.layers} layers as {', '.join(str(stop - start) for _, (start, stop) in stages)}",
        )
        if self._had and _who_has_what(made) == _who_has_what(self._had):
            return self._had.model_copy(update={"avoided": self._avoided})
        return made


def _who_has_what(layout: Layout) -> tuple[object, ...]:
    return layout.head, layout.head_epoch, layout.layers, layout.seats


def _avoided(had: Layout | None, members: Sequence[Member], silent: Silent) -> tuple[str, ...]:
    """Endpoints: also of the stage that the head has just told to be lost, and of the head that all stages miss."""
    if had is None:
        return ()
    lost = set(had.avoided)
    for one in members:
        if one.placement.id == had.head and (one.state.serves, one.state.number) == (had.id, had.number):
            lost |= {seat.endpoint for seat in had.seats if seat.placement == one.state.lost}
    seated = [one for one in members if any(one.sits_in(seat) for seat in had.seats)]
    if seated and all(one.state.misses == had.number for one in seated):
        lost |= {one.state.endpoint for one in members if one.placement.id == had.head}
        lost |= {where for (placement, _), where in silent.items() if placement == had.head}
    return tuple(sorted(lost & {*silent.values(), *(one.state.endpoint for one in members)}))
