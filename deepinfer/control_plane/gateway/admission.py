"""Who may go on to an engine now, who waits, and who is refused at once.

A request goes on when a replica has room for its work. Else it waits here, where priorities and deadlines count and its
client's hang-up costs nothing: in its model's queue, which is bounded by the time until it would be served, judged by
how fast the engines really drain it. Who would wait longer, or past its own deadline, is refused at once and told when
to come again. A newcomer of higher priority may take the place of the last one of lower priority.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from deepinfer.control_plane.gateway.drain_rate import DrainRate
from deepinfer.control_plane.gateway.measured import Measured
from deepinfer.control_plane.gateway.model_queue import ModelQueue, Priority, Waiting
from deepinfer.control_plane.gateway.openai_models import nobody_for
from deepinfer.control_plane.gateway.work import Experience
from deepinfer.control_plane.openai_errors import Overloaded
from deepinfer.control_plane.router.candidate import RoutedRequest
from deepinfer.control_plane.router.choose import eligible, trusted
from deepinfer.control_plane.router.connection import Connection
from deepinfer.control_plane.router.loan import Loan
from deepinfer.control_plane.router.replicas import Replicas
from deepinfer.control_plane.router.router import Router
from deepinfer.fleet.errors import DeepinferError

LONGEST_RETRY_SECONDS: Final = 300
_SLACK: Final = 2.0
"""Who was let into the queue may wait so many times longer than the bound: the drain rate was an estimate."""


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """Of each model's queue in one gateway."""

    seconds: float = 30.0  # until the last one would be served
    requests: int = 4096
    size: int = 256 << 20  # bytes of bodies


class Asked(Struct, frozen=True):
    """What admission needs to know of a request. `deadline` is of the event loop's clock."""

    model: str
    priority: Priority = (0, 0)
    work: float = 1.0
    size: int = 0
    deadline: float = math.inf
    is_alias: bool = False  # its engines know the model by their deployment's name only
    request: RoutedRequest = RoutedRequest("")


@dataclass(eq=False, slots=True)
class _Waiting(Waiting):
    asked: Asked = field(kw_only=True)
    turn: asyncio.Future[Loan] = field(kw_only=True)


class ModelTraffic:
    """Of one model through this gateway."""

    def __init__(self) -> None:
        self.experience = Experience()
        self.drain = DrainRate()
        self.queue: ModelQueue[_Waiting] = ModelQueue()


@dataclass(slots=True)
class Turn:
    """A request's way to its engine: how many were before it, how long that took, and the engine."""

    loan: Loan
    position: int = 0
    waited: float = 0.0


class Admission:
    """Of one gateway; told by `replicas` when there may be room."""

    def __init__(self, replicas: Replicas, limits: QueueLimits | None = None) -> None:
        self.router = Router()
        self._replicas = replicas
        self._limits = limits or QueueLimits()
        self._traffic: dict[str, ModelTraffic] = {}
        self._queued: dict[str, ModelTraffic] = {}  # those in whose queues somebody waits
        self._now = asyncio.get_running_loop().time
        replicas.when_eased = self._pump

    def traffic(self, model: str) -> ModelTraffic:
        """Of a model that is known here."""
        found = self._traffic.get(model)
        if found is None:
            found = self._traffic[model] = ModelTraffic()
        return found

    def waiting(self) -> dict[str, int]:
        """How many requests wait, by model."""
        return {model: len(traffic.queue) for model, traffic in self._queued.items()}

    def seat(self, asked: Asked) -> Loan | None:
        """A replica for a request that need not wait, or None. Raises `NoReadyReplica` and `ModelNotServed`."""
        return None if asked.model in self._queued else self._seat(asked)

    async def turn(self, asked: Asked, measured: Measured) -> Turn:
        """Raises `NoReadyReplica`, `ModelNotServed` and `Overloaded`."""
        loan = self.seat(asked)
        turn = await self._wait(asked, measured) if loan is None else Turn(loan)
        measured.admitted(turn.waited)
        return turn

    def another(self, asked: Asked, tried: frozenset[str]) -> Loan | None:
        """A replica for a request that had its turn, and failed on those that it tried: it does not wait again."""
        candidates = self._replicas.ready(asked.model)
        request = replace(asked.request, tried=tried)
        split = self._replicas.split(asked.model)
        left = eligible(trusted(candidates), request, split) or eligible(candidates, request, split)
        return self._lend(left, asked, request) if left else None

    def is_in_stages(self, model: str) -> bool:
        """Its replicas are of several processes, any of which may become the one that takes requests."""
        return self._replicas.is_in_stages(model)

    def ready_placements(self, model: str) -> frozenset[str]:
        return frozenset(candidate.placement for candidate in self._replicas.ready(model))

    async def next_turn(self) -> None:
        """Returns when an engine becomes ready or is so no longer."""
        await self._replicas.next_turn()

    def _seat(self, asked: Asked) -> Loan | None:
        candidates, now = self._replicas.ready(asked.model), self._now()
        if not candidates:
            raise nobody_for(self._replicas, asked.model)
        split = self._replicas.split(asked.model)
        fit = [candidate for candidate in trusted(candidates) if candidate.has_room(asked.work, now)]
        left = eligible(fit, asked.request, split)
        return self._lend(left, asked, asked.request) if left else None

    def _lend(self, candidates: Sequence[Connection], asked: Asked, request: RoutedRequest) -> Loan:
        choice = self.router.choose(candidates, request, self._replicas.turn, self._now())
        loan = self._replicas.lend(choice, asked.work)
        self.router.took(choice, self.traffic(asked.model).experience.bytes_a_token)
        return loan

    async def _wait(self, asked: Asked, measured: Measured) -> Turn:
        traffic, came = self.traffic(asked.model), self._now()
        position, expected = self._expected(traffic, asked, came)
        self._refuse_what_is_late(traffic, asked, came, expected)
        self._make_way(traffic, asked, came, expected)
        waiting = _Waiting(
            asked.priority, asked.work, asked.size, asked=asked, turn=asyncio.get_running_loop().create_future()
        )
        traffic.queue.add(waiting)
        traffic.drain.busy(came)
        self._queued[asked.model] = traffic
        measured.queued(position)
        try:
            async with asyncio.timeout_at(min(asked.deadline, came + _SLACK * self._limits.seconds)):
                loan = await waiting.turn
        except (TimeoutError, asyncio.CancelledError) as error:
            _give_back(waiting.turn)  # its turn had come in that very moment
            self._leave(traffic, waiting)
            if isinstance(error, TimeoutError):
                why = f"it waited {self._now() - came:.1f} s for its turn"
                raise self._overloaded(traffic, asked, why) from None
            raise
        return Turn(loan, position, self._now() - came)

    def _expected(self, traffic: ModelTraffic, asked: Asked, now: float) -> tuple[int, float]:
        """How many would be served before a newcomer, and in how many seconds; 0.0 while nothing is known."""
        position, work = traffic.queue.ahead_of(asked.priority)
        rate = traffic.drain.rate(now)
        return position, work / rate if rate else 0.0

    def _refuse_what_is_late(self, traffic: ModelTraffic, asked: Asked, now: float, expected: float) -> None:
        takes = expected + traffic.drain.seconds_of(asked.work)
        if now + takes > asked.deadline:
            raise self._overloaded(traffic, asked, f"it would take {takes:.1f} s, and its deadline is sooner")

    def _make_way(self, traffic: ModelTraffic, asked: Asked, now: float, expected: float) -> None:
        queue, limits = traffic.queue, self._limits
        if expected > limits.seconds:
            raise self._overloaded(traffic, asked, f"{len(queue)} requests wait for its engines, {expected:.0f} s long")
        while queue and (
            len(queue) >= limits.requests
            or queue.size + asked.size > limits.size
            or self._longest(traffic, now) > limits.seconds
        ):
            last = queue.last
            if last is None or last.priority <= asked.priority:
                raise self._overloaded(traffic, asked, f"{len(queue)} requests wait for its engines")
            self._leave(traffic, last)
            if not last.turn.done():
                last.turn.set_exception(self._overloaded(traffic, last.asked, "others of higher priority came"))

    def _longest(self, traffic: ModelTraffic, now: float) -> float:
        rate = traffic.drain.rate(now)
        return traffic.queue.work / rate if rate else 0.0

    def _overloaded(self, traffic: ModelTraffic, asked: Asked, why: str) -> Overloaded:
        position, expected = self._expected(traffic, asked, self._now())
        seconds = min(LONGEST_RETRY_SECONDS, max(1, math.ceil(expected)))
        return Overloaded(f"'{asked.model}' is overloaded: {why}; try again in {seconds} s.", seconds, position)

    def _leave(self, traffic: ModelTraffic, waiting: _Waiting) -> None:
        traffic.queue.leave(waiting)
        if not traffic.queue and self._queued.pop(waiting.asked.model, None) is not None:
            traffic.drain.busy(None)

    def _pump(self) -> None:
        """Let those go on whose turn it is."""
        for traffic in tuple(self._queued.values()):
            while (waiting := traffic.queue.first) is not None:
                if not waiting.turn.done() and not self._go_on(waiting):
                    break
                self._leave(traffic, waiting)

    def _go_on(self, waiting: _Waiting) -> bool:
        """Whether the queue need not wait for this one any more."""
        try:
            loan = self._seat(waiting.asked)
        except DeepinferError as error:  # no replica is left
            waiting.turn.set_exception(error)
            return True
        if loan is not None:
            waiting.turn.set_result(loan)
        return loan is not None


def _give_back(turn: asyncio.Future[Loan]) -> None:
    if turn.done() and not turn.cancelled() and turn.exception() is None:
        turn.result().give_back()
