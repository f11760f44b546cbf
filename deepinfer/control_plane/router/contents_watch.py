"""The watch of one engine, with what its KV cache holds where that is wanted.

Contents that do not fit together, twice in a row, are no reason to take the replica out: it is watched without them for
a while, which doubles, and routed to by guesses meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Final

from deepinfer.control_plane.router.outlook import Outlook
from deepinfer.control_plane.router.trust import NOT_YET
from deepinfer.engine_shim.client import EngineClient
from deepinfer.engine_shim.kv_mirror import KvMirror, StateDrift, mirrored
from deepinfer.engine_shim.state_wire import EngineState

log = logging.getLogger(__name__)

_UNFIT: Final = "what it tells of its KV contents does not fit together"
_FIRST_SECONDS: Final = 1.0
_LONGEST_SECONDS: Final = 60.0


class _Contents(KvMirror):
    """On the outlook's shelf. What it does not hold any more is not foreseen from that moment on."""

    def __init__(self, outlook: Outlook) -> None:
        super().__init__(outlook.shelf)
        self._outlook = outlook

    def forget(self) -> None:
        super().forget()
        self._outlook.trust.missing = NOT_YET


class ContentsWatch:
    """`wanted` says whether contents are, now. What they are known to be goes to the outlook."""

    def __init__(self, outlook: Outlook, wanted: Callable[[], bool]) -> None:
        self._outlook = outlook
        self._wanted = wanted
        self._mirror = _Contents(outlook)
        self._anew = asyncio.Event()
        self._lasts = _FIRST_SECONDS
        self._again: asyncio.TimerHandle | None = None

    def watch_anew(self) -> None:
        """From a new snapshot, if contents are wanted; without them, if not."""
        self._anew.set()

    async def states(self, client: EngineClient) -> AsyncGenerator[EngineState, None]:
        """Ends, and fails with `EngineFailed`, as the client's own watch does."""
        doubt = ""
        try:
            while True:
                self._anew.clear()
                states = self._with_contents(client) if self._wanted() and not doubt else client.watch()
                self._outlook.trust.missing = doubt or NOT_YET
                try:
                    async with aclosing(_until(self._anew, states)) as some:
                        async for state in some:
                            yield state
                    if not self._anew.is_set():
                        return
                    doubt = ""
                except StateDrift:
                    doubt = _UNFIT
                    self._retry_later()
        finally:
            if self._again is not None:
                self._again.cancel()

    async def _with_contents(self, client: EngineClient) -> AsyncGenerator[EngineState, None]:
        outlook, mirror = self._outlook, self._mirror
        async with aclosing(mirrored(client, mirror)) as states:
            async for state in states:
                outlook.shelf.describe(mirror.groups, outlook.block_size)
                if mirror.whole:
                    outlook.trust.missing = ""
                    self._lasts = _FIRST_SECONDS
                yield state

    def _retry_later(self) -> None:
        self._again = asyncio.get_running_loop().call_later(self._lasts, self.watch_anew)
        self._lasts = min(2 * self._lasts, _LONGEST_SECONDS)


async def _until(ends: asyncio.Event, states: AsyncIterator[EngineState]) -> AsyncGenerator[EngineState, None]:
    """The states that come before `ends` is set."""
    ending = asyncio.ensure_future(ends.wait())
    async with aclosing(states):  # type: ignore[type-var]
        step = asyncio.ensure_future(anext(states, None))
        try:
            while True:
                await asyncio.wait((step, ending), return_when=asyncio.FIRST_COMPLETED)
                state = step.result() if step.done() else None
                if state is None:
                    return
                yield state
                step = asyncio.ensure_future(anext(states, None))
        finally:
            ending.cancel()
            step.cancel()
            await asyncio.wait((step,))
