"""One engine as the router knows it: who answers at the endpoint, whether it is ready, and what runs there from here.

Its phase is observed, never remembered: a replica is a candidate only while the engine itself, over an open WatchState
stream, says READY, and only after GetInfo has shown the placement and epoch that were meant (fencing). While its
lifeline is cut, its last word does not count; what runs there is left alone.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from deepinfer.control_plane.router.candidate import Candidate
from deepinfer.control_plane.router.routes import Route
from deepinfer.engine_shim.client import EngineClient
from deepinfer.engine_shim.lifeline import lifeline
from deepinfer.engine_shim.state_wire import EngineState
from deepinfer.engine_shim.wire import ShimInfo, ShimPhase
from deepinfer.fleet.errors import EngineFailed

log = logging.getLogger(__name__)

SHORTEST_PAUSE = 0.1
LONGEST_PAUSE = 2.0


class WrongEngine(EngineFailed):
    """Something else answers at the replica's endpoint."""


class Connection:
    """Owned by `Replicas`, which runs `run` as a task and ends it with `retire`.

    `renamed` hears of new `others`, `turned` when it becomes ready or is so no longer.
    """

    def __init__(self, route: Route, renamed: Callable[[], None], turned: Callable[[], None]) -> None:
        self.route = route
        self.others: tuple[str, ...] = ()  # what the engine said it serves besides its route's names; kept while away
        self.trouble = ""  # why it is not ready, for people
        self._renamed, self._turned = renamed, turned
        self._client = EngineClient(route.endpoint, only=(route.placement, route.epoch))
        self._state: EngineState | None = None
        self._reachable = True
        self._in_flight = 0
        self._last_used = 0
        self._woken = asyncio.Event()
        self._retired = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def candidate(self) -> Candidate | None:
        """None unless the engine itself said, last, that it is ready, and could still say otherwise."""
        state = self._state
        if not self._reachable or state is None or state.phase is not ShimPhase.READY or self._retired.is_set():
            return None
        route = self.route
        return Candidate(
            route.placement, route.epoch, route.node, route.endpoint, self._in_flight, self._last_used, state.load
        )

    @contextmanager
    def lend(self, turn: int) -> Iterator[EngineClient]:
        """The client for one request, counted in flight until the block ends."""
        self._in_flight += 1
        self._last_used = turn
        self._idle.clear()
        try:
            yield self._client
        finally:
            self._in_flight -= 1
            if not self._in_flight:
                self._idle.set()

    def wake(self) -> None:
        """There is news of this replica: do not wait longer to try again."""
        self._woken.set()

    def retire(self) -> None:
        """Never a candidate again, from now on; what runs may end in its own time."""
        self._retired.set()

    async def run(self) -> None:
        """Follow the engine until retired, and keep the client until the last request has ended."""
        try:
            async with asyncio.TaskGroup() as tasks:
                following = tasks.create_task(self._follow())
                await self._retired.wait()
                following.cancel()
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

    async def _watch(self) -> None:
        async for state in self._client.watch():
            with self._turning():
                self._state = state
            self.trouble = state.message
            if state.served_names:
                self._take_names(state.served_names)

    def _take_names(self, served: tuple[str, ...]) -> None:
        """Told only if it is news: all names are looked at then, and thousands of engines may say theirs at once."""
        others = tuple(name for name in dict.fromkeys(served) if name not in self.route.names)
        if others != self.others:
            self.others = others
            self._renamed()

    def _is_reachable(self, reachable: bool) -> None:
        if reachable != self._reachable:
            with self._turning():
                self._reachable = reachable
            self._troubled_by("" if reachable else f"its node does not answer at {self.route.endpoint}")

    def _lost(self, trouble: str) -> None:
        with self._turning():
            self._state = None
        self._troubled_by(trouble)

    def _troubled_by(self, trouble: str) -> None:
        if trouble not in ("", self.trouble):  # said once, not at every try
            log.warning("%s on %s is not routed to: %s", self.route.placement, self.route.node, trouble)
        self.trouble = trouble

    @contextmanager
    def _turning(self) -> Iterator[None]:
        """Tell if the block made it ready, or ready no longer."""
        was_ready = self.candidate is not None
        yield
        if was_ready is not (self.candidate is not None):
            self._turned()

    async def _pause(self, failures: int) -> None:
        """Longer after each failure, and never the same for all gateways; news cuts it short, but not to nothing."""
        pause = min(LONGEST_PAUSE, SHORTEST_PAUSE * 2 ** min(failures, 10)) * random.uniform(0.5, 1.0)  # noqa: S311
        await asyncio.sleep(SHORTEST_PAUSE)
        with suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await self._woken.wait()
