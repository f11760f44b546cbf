"""One deployment's step: how many more, which ones go, and what replaces what must not stay as it is. Pure.

A replica must be replaced when its engine's spec is another one, or when it has to leave its node. Both go the same
way. First what serves nobody anyway. Then, where there is room, a new one is started beside the old ones (surge), and
an old one goes when a new one is ready. Where there is none, one old one is renewed in place, or makes room, at a
time: the same step is taken again when it is ready. What cannot be had even so leaves the old ones serving.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from deepinfer.control_plane.scheduler.eligibility import starts_nothing
from deepinfer.control_plane.scheduler.fit import still_fits
from deepinfer.control_plane.scheduler.making_way import Ways
from deepinfer.control_plane.scheduler.room import Room
from deepinfer.control_plane.scheduler.sight import Sight
from deepinfer.fleet.resources import Deployment, Intent, Placement


@dataclass
class Shortfall:
    """Replicas that have no place."""

    missing: int = 0
    waits_for: list[str] = field(default_factory=list)


class Roll:
    """The replicas of one deployment, in one pass."""

    def __init__(self, deployment: Deployment, room: Room, sight: Sight) -> None:
        self.deployment = deployment
        self._room, self._sight = room, sight
        self._own: list[Placement] = []  # as last looked at
        self._some_drain = False
        self._good: list[Placement] = []
        self._bad: list[Placement] = []
        self.shortfall = Shortfall()
        self.gives_way = False  # it gave up a place for successors of its own, who have none yet

    def let_go(self) -> None:
        """First of all deployments, so that what becomes free is there for all of them."""
        self._look()
        if self._missing < 0:
            self._drop_surplus()
        if self._bad:
            self._replace_what_serves_nobody()
            self._let_go_what_is_covered()
        self.gives_way = self._total < self._wanted and self._had_more()

    def fill(self) -> None:
        """Then, the most important first; `shortfall` is what is left without a place."""
        self._look()
        for placement in self._bad:
            self._room.note_going(placement)
        self._place_as_many_as_allowed()
        if self._missing > 0 and self._is_at_rest():
            self._recreate_one()
            self._place_as_many_as_allowed()
        if self._total < self._wanted:
            self._do_without()

    def _look(self) -> None:
        """Others may have sent some of it away meanwhile."""
        own = self._room.of(self.deployment.name)
        if own == self._own:
            return
        self._own = own
        serving = [placement for placement in own if placement.intent is Intent.SERVE]
        self._some_drain = any(p.intent is Intent.DRAIN and p.node in self._sight.verified for p in own)
        outdated = self._sight.outdated_generations(serving, self.deployment)
        self._good, self._bad = [], []
        for placement in serving:
            must_go = placement.generation in outdated or self._sight.wants_it_elsewhere(placement)
            (self._bad if must_go else self._good).append(placement)

    @property
    def _wanted(self) -> int:
        """What cannot be read counts as there."""
        return max(0, self.deployment.spec.replicas - self._sight.unreadable_of(self.deployment))

    @property
    def _missing(self) -> int:
        return self._wanted - len(self._good)

    @property
    def _total(self) -> int:
        return len(self._good) + len(self._bad)

    @property
    def _available(self) -> int:
        return sum(map(self._sight.can_take_over, self._good)) + sum(map(self._sight.is_ready, self._bad))

    def _had_more(self) -> bool:
        """In the fleet as it is, some of which drains by now, or is just gone; what is on no node frees no device."""
        serving = {(p.node, p.id) for p in (*self._good, *self._bad)}
        own = self._sight.of_deployment.get(self.deployment.name, ())
        return any(p.node in self._sight.verified and (p.node, p.id) not in serving for p in own)

    def _drop_surplus(self) -> None:
        """Those first that serve nobody, then the youngest slots.

        A node that is not there may have been leaving, so that one more was started: that one is kept till it is back.
        """
        sight = self._sight
        by_worth = sorted(self._good, key=lambda p: (sight.is_ready(p), p.node in sight.verified, -p.replica))
        for placement in by_worth:
            if -self._missing <= self._started_beside():
                return
            self._good.remove(placement)
            self._drain(placement, "fewer replicas are wanted")

    def _started_beside(self) -> int:
        """How many may have been started because others were leaving."""
        sight = self._sight
        left = sum(p.node not in sight.verified and not sight.is_given_up(p.node) for p in self._good)
        return min(self.deployment.spec.rollout.max_surge, left) if self._wanted else 0

    def _replace_what_serves_nobody(self) -> None:
        """On a node that is not there it may yet serve somebody, so it stays until others are ready for all."""
        covered = sum(map(self._sight.is_ready, self._good)) >= self._wanted
        for placement in sorted(self._bad, key=lambda p: -p.replica):
            is_known = placement.node in self._sight.verified
            if not self._sight.is_ready(placement) and (is_known or covered):
                self._take_out(placement)

    def _let_go_what_is_covered(self) -> None:
        """Old ones, as long as enough are ready without them."""
        spare = max(0, self._available - (self._wanted - self.deployment.spec.rollout.max_unavailable))
        ready = sorted(filter(self._sight.is_ready, self._bad), key=lambda p: -p.replica)
        for placement in ready[:spare]:
            self._take_out(placement)

    def _place_as_many_as_allowed(self) -> None:
        while self._missing > 0 and self._total < self._wanted + self.deployment.spec.rollout.max_surge:
            placed = self._room.place(self.deployment)
            if placed is None:
                return
            self._good.append(placed)

    def _do_without(self) -> None:
        """Fewer than wanted are placed: make way for each, or say that there is none."""
        waiting: list[str] = []
        ways = Ways(self.deployment, self._room, self._sight)
        while self._total + len(waiting) < self._wanted:
            if placed := self._room.place(self.deployment):
                self._good.append(placed)
                continue
            way = ways.make()
            if way.waits_for:
                waiting.append(way.waits_for)
            elif not way.is_free:
                break
        self.shortfall.missing += self._wanted - self._total
        self.shortfall.waits_for += sorted(set(waiting))

    def _is_at_rest(self) -> bool:
        """No more are there than wanted, nothing is under way, and no other is out of service.

        What drains on a node that is not there may do so for ever, so it is not waited for.
        """
        if self._total > self._wanted:
            return False
        at_least = self._total - max(1, self.deployment.spec.rollout.max_unavailable)
        settled = not self._some_drain and all(map(self._sight.can_take_over, self._good))
        return settled and self._available - 1 >= at_least

    def _recreate_one(self) -> None:
        for placement in sorted(self._bad, key=lambda p: -p.replica):
            if placement.node in self._sight.verified and self._has_room_instead(placement):
                self._take_out(placement)
                self.gives_way = True
                return
        self.shortfall.missing = sum(not self._only_moves(placement) for placement in self._bad)

    def _has_room_instead(self, placement: Placement) -> bool:
        if self._only_moves(placement):
            return self._room.has_seat(self.deployment)  # or it would come back to the place that it left
        return self._may_be_renewed(placement) or self._room.without(placement, self.deployment).best is not None

    def _only_moves(self, placement: Placement) -> bool:
        """A better place was asked for, which may be taken by now."""
        sight = self._sight
        return not sight.must_leave(placement) and not sight.is_outdated(placement, self.deployment)

    def _take_out(self, placement: Placement) -> None:
        """In place where its devices still do; otherwise it must be gone before its successor takes others."""
        self._bad.remove(placement)
        if self._missing > len(self._bad) and self._may_be_renewed(placement):
            self._good.append(self._room.renew(placement, self.deployment))
        else:
            outdated = f"generation {self.deployment.generation} replaces it"
            self._drain(placement, self._sight.wants_it_elsewhere(placement) or outdated)

    def _may_be_renewed(self, placement: Placement) -> bool:
        node = self._sight.verified.get(placement.node)
        return (
            node is not None
            and not starts_nothing(node)
            and not self._sight.wants_it_elsewhere(placement)
            and still_fits(self.deployment.spec, node, placement.devices)
        )

    def _drain(self, placement: Placement, why: str) -> None:
        self._some_drain = True
        self._room.send_away(placement, why)
