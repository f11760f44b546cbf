"""One engine as the router knows it: who answers at the endpoint, whether it is ready, and what runs there from here.

Its phase is observed, never remembered: a replica is a candidate only while the engine itself, over an open WatchState
stream, says READY, and only after GetInfo has shown the placement and epoch that were meant (fencing). While its
lifeline is cut, its last word does not count; what runs there is left alone.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol

from deepinfer.control_plane.prompts.readers import PromptReaders
from deepinfer.control_plane.router.candidate import Candidate
from deepinfer.control_plane.router.capacity import Capacity
from deepinfer.control_plane.router.contents_watch import ContentsWatch
from deepinfer.control_plane.router.forecast import Forecast
from deepinfer.control_plane.router.health import Health, Pace, Standing
from deepinfer.control_plane.router.kv_index import KvShelf
from deepinfer.control_plane.router.loan import Loan
from deepinfer.control_plane.router.outlook import Outlook
from deepinfer.control_plane.router.prompt_reading import PromptReading
from deepinfer.control_plane.router.router import Choice
from deepinfer.control_plane.router.routes import Route
from deepinfer.engine_shim.client import EngineClient
from deepinfer.engine_shim.lifeline import lifeline
from deepinfer.engine_shim.state_wire import EngineState
from deepinfer.engine_shim.token_engine import EngineLoad
from deepinfer.engine_shim.wire import ShimInfo, ShimPhase
from deepinfer.fleet.errors import EngineFailed
from deepinfer.fleet.spec import RoutingPolicy

log = logging.getLogger(__name__)

SHORTEST_PAUSE = 0.1
LONGEST_PAUSE = 2.0


class WrongEngine(EngineFailed):
    """Something else answers at the replica's endpoint."""


class Follower(Protocol):
    """Hears what is new of a connection: of new `others`; of becoming ready, or being so no longer; of its load."""

    def renamed(self) -> None: ...

    def turned(self) -> None: ...

    def paced(self, connection: Connection) -> None: ...

    def eased(self) -> None: ...

    def ejects(self, placement: str) -> None: ...


class Connection:
    """Owned by `Replicas`, which runs `run` as a task and ends it with `retire`."""

    def __init__(self, route: Route, follower: Follower, shelf: KvShelf, readers: PromptReaders) -> None:
        self.route = route
        self.policy = RoutingPolicy.KV  # of its deployment
        self.outlook = Outlook(route.placement, shelf)
        self.wants_contents = False  # whether what its KV cache holds makes a difference
        self.prompts = PromptReading(readers)
        self._contents = ContentsWatch(self.outlook, lambda: self.wants_contents)
        self.others: tuple[str, ...] = ()  # what the engine said it serves besides its route's names; kept while away
        self.trouble = ""  # why it is not ready, for people
        self.health = Health()
        self.pace = Pace()
        self._follower = follower
        self._capacity = Capacity()
        self.placement, self.deployment = route.placement, route.deployment
        self.last_used = 0
        self.now = asyncio.get_running_loop().time
        self._client = EngineClient(route.endpoint, only=(route.placement, route.epoch))
        self._state: EngineState | None = None
        self._reachable = True
        self._woken = asyncio.Event()
        self._retired = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def is_ready(self) -> bool:
        """Only if the engine itself said so, last, and could still say otherwise."""
        state = self._state
        return state is not None and state.phase is ShimPhase.READY and self._reachable and not self._retired.is_set()

    def candidate(self) -> Candidate:
        """As it is now; one only while it is ready."""
        route = self.route
        where = (route.placement, route.epoch, route.node, route.endpoint)
        return Candidate(*where, self.in_flight, self.last_used, self.load, self.standing, route.deployment)

    @property
    def in_flight(self) -> int:
        return self.outlook.in_flight

    @property
    def load(self) -> EngineLoad:
        return self.outlook.load

    @property
    def standing(self) -> Standing:
        return self.health.standing(self.now()) if self.health.until else Standing.TRUSTED

    def has_room(self, work: float, now: float) -> bool:
        """Whether so much more would run there soon, instead of waiting."""
        return self._capacity.has_room(work, now)

    def lend(self, choice: Choice[Any], turn: int, work: float) -> Loan:
        """For one request, in flight until it is given back."""
        now, work = self.now(), self._capacity.at_most(work)
        if not self.in_flight:
            self._idle.clear()
        self.outlook.went(choice.forecast)
        self.last_used = turn
        self._capacity.sent(work, now)
        if self.health.until:
            self.health.asked(now)
        return Loan(self, self._client, self.route, work, choice)

    def given_back(self, loan: Loan) -> None:
        self.outlook.over(loan.forecast, self.now())
        self._capacity.over(loan.work)
        if not self.in_flight:
            self._idle.set()
        self._follower.eased()

    def failed(self) -> None:
        """One request did."""
        if self.health.failed(self.now()):
            self._ejected("it fails the requests it gets")

    def compared(self, forecast: Forecast, prompt_tokens: int, cached_tokens: int) -> None:
        """What an answer said of its prompt."""
        if self.outlook.compared(forecast, prompt_tokens, cached_tokens, self.now()):
            log.warning("%s is routed to by guesses for a while: %s", self.placement, self.outlook.trust.reason)
            self.watch_anew()

    def slowed(self) -> None:
        """It has become much slower than its peers."""
        now = self.now()
        if self.health.standing(now) is Standing.TRUSTED:
            self.health.eject(now)
            self._ejected("it slowed down, and its peers did not")

    @property
    def is_ejected(self) -> bool:
        return self.standing is not Standing.TRUSTED

    def _ejected(self, why: str) -> None:
        log.warning("%s is left out for a while: %s", self.route.placement, why)
        self._follower.ejects(self.route.placement)

    def wake(self) -> None:
        """There is news of this replica: do not wait longer to try again."""
        self._woken.set()

    def retire(self) -> None:
        """Never a candidate again, from now on; what runs may end in its own time."""
        self._retired.set()

    def cut_off(self, message: str) -> None:
        """Retired, and what runs fails with this message."""
        self.retire()
        self._client.cut_off(message)

    async def run(self) -> None:
        """Follow the engine until retired, and keep the client until the last request has ended."""
        try:
            async with asyncio.TaskGroup() as tasks:
                parts = self._follow(), self.prompts.run(self._client, self.placement)
                following = [tasks.create_task(part) for part in parts]
                await self._retired.wait()
                for task in following:
                    task.cancel()
            await self._idle.wait()
        finally:
            await self._client.close()

    async def _follow(self) -> None:
        failures = 0
        while True:
            self._woken.clear()
            try:
                info = await self._identify()
                failures, self._reachable = 0, True
                async with lifeline(info.call_endpoint, self._is_reachable):
                    await self._watch()
                self._lost("its engine ended the connection")
            except EngineFailed as error:
                self._lost(str(error))
            except Exception as error:
                # What one engine says, however odd, must not end the others.
                log.exception("%s: what its engine says cannot be understood", self.route.placement)
                self._lost(f"its engine cannot be understood ({type(error).__name__})")
            failures += 1
            await self._pause(failures)

    async def _identify(self) -> ShimInfo:
        info = await self._client.info()
        if (info.placement, info.epoch) != (self.route.placement, self.route.epoch):
            raise WrongEngine(
                f"at {self.route.endpoint} answers {info.placement} epoch {info.epoch},"
                f" not {self.route.placement} epoch {self.route.epoch}"
            )
        return info

    def watch_anew(self) -> None:
        """Other contents are wanted than are told, or they cannot be believed."""
        self._contents.watch_anew()

    async def _watch(self) -> None:
        info: ShimInfo | None = None
        async for state in self._contents.states(self._client):
            if info is None and state.phase is ShimPhase.READY:
                info = await self._client.info()
                self._capacity.knows(info.max_running, info.kv_blocks, info.kv_block_size, info.max_model_len)
                self.outlook.knows(info)
            if info is not None and self.wants_contents:
                self.prompts.ask(info)
            with self._turning():
                self._state = state
            self.trouble = state.message
            self._take_load(state.load)
            if state.served_names:
                self._take_names(state.served_names)

    def _take_load(self, load: EngineLoad) -> None:
        self.outlook.told(load, self.now())
        self._capacity.told(load)
        pace = self.pace.after(load.seconds_per_output_token)
        if pace != self.pace:
            self.pace = pace
            self._follower.paced(self)
        self._follower.eased()

    def _take_names(self, served: tuple[str, ...]) -> None:
        """Told only if it is news: all names are looked at then, and thousands of engines may say theirs at once."""
        others = tuple(name for name in dict.fromkeys(served) if name not in self.route.names)
        if others != self.others:
            self.others = others
            self._follower.renamed()

    def _is_reachable(self, reachable: bool) -> None:
        if reachable != self._reachable:
            with self._turning():
                self._reachable = reachable
            self._troubled_by("" if reachable else f"its node does not answer at {self.route.endpoint}")

    def _lost(self, trouble: str) -> None:
        with self._turning():
            self._state = None
        self.outlook.lost("its engine was lost")
        self._troubled_by(trouble)

    def _troubled_by(self, trouble: str) -> None:
        if trouble not in ("", self.trouble):  # said once, not at every try
            log.warning("%s on %s is not routed to: %s", self.route.placement, self.route.node, trouble)
        self.trouble = trouble

    @contextmanager
    def _turning(self) -> Iterator[None]:
        """Tell if the block made it ready, or ready no longer."""
        was_ready = self.is_ready
        yield
        if was_ready is not self.is_ready:
            self._follower.turned()

    async def _pause(self, failures: int) -> None:
        """Longer after each failure, and never the same for all gateways; news cuts it short, but not to nothing."""
        pause = min(LONGEST_PAUSE, SHORTEST_PAUSE * 2 ** min(failures, 10)) * random.uniform(0.5, 1.0)  # noqa: S311
        await asyncio.sleep(SHORTEST_PAUSE)
        with suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await self._woken.wait()
