"""One reader of WatchState: a snapshot, then what changed.

Several changes become one message: phase and, for a reader that wants them, KV contents travel at most every 100 ms;
how many requests run or wait, that the engine stands still, or has become faster or slower, alone at most every 500 ms;
what drifts with every step (rates, blocks in use) alone every 5 s. A message costs both sides half a millisecond of CPU
together: that of several tokens. While no request runs nothing is sent and nothing is looked at. A reader so slow that
too many changes wait for it gets a new snapshot instead of them; the same when the contents were cleared or began anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import replace
from typing import Final

from deepinfer.engine_shim.kv_contents import BlockKey, KvChange, KvContents, by_group
from deepinfer.engine_shim.state_wire import DRIFT_SECONDS, EngineState
from deepinfer.engine_shim.status import ShimStatus
from deepinfer.engine_shim.token_engine import EngineLoad
from deepinfer.engine_shim.wire import ShimPhase

_MESSAGE_SECONDS: Final = 0.1
_LOAD_SECONDS: Final = 0.5
_NEW_RATE: Final = 0.5
"""So much more or less of it."""
_MESSAGE_BLOCKS: Final = 1 << 17
"""Of a snapshot; 8 bytes each."""
_WAITING_BLOCKS: Final = 65_536


class StateWatch:
    """Lives as long as its reader's RPC."""

    def __init__(self, status: ShimStatus, *, kv: bool) -> None:
        self._status = status
        self._wants_kv = kv
        self._changed = asyncio.Event()
        self._kv: KvContents | None = None
        self._forget_kv: Callable[[], None] = lambda: None
        self._snapshot_due = True
        self._stored: dict[BlockKey, None] = {}
        self._removed: dict[BlockKey, None] = {}
        self._told_sequence = 0
        self._told_phase: tuple[ShimPhase, str] | None = None
        self._told_names: tuple[str, ...] = ()
        self._told_load = EngineLoad()
        self._told_load_at = 0.0
        self._looking_again: asyncio.Handle = asyncio.get_running_loop().call_soon(lambda: None)

    async def states(self) -> AsyncGenerator[EngineState, None]:
        """Until the shim has failed; nothing follows that."""
        forget_status = self._status.listen(self._changed.set)
        try:
            while True:
                self._changed.clear()
                for state in self._news():
                    yield state
                    if state.phase is ShimPhase.FAILED:
                        return
                self._look_again_if_busy()
                await asyncio.sleep(_MESSAGE_SECONDS)
                await self._changed.wait()
        finally:
            self._looking_again.cancel()
            forget_status()
            self._forget_kv()

    def _news(self) -> Iterator[EngineState]:
        """The messages that are due now; nearly always one or none."""
        self._attach()
        if self._snapshot_due:
            yield from self._snapshot()
        elif self._stored or self._removed or self._told() != (self._phase(), self._status.names()):
            yield self._changes()
        elif self._load_is_due():
            yield self._state()

    def _look_again_if_busy(self) -> None:
        """An engine's own thread may end a request a little after its answer has ended, and nobody tells."""
        self._looking_again.cancel()
        if self._told_load.running or self._told_load.waiting or self._told_load != self._status.load():
            self._looking_again = asyncio.get_running_loop().call_later(_LOAD_SECONDS, self._changed.set)

    def _load_is_due(self) -> bool:
        load, told = self._status.load(), self._told_load
        due = self._told_load_at + (_LOAD_SECONDS if _is_news(load, told) else DRIFT_SECONDS)
        return load != told and asyncio.get_running_loop().time() >= due

    def _attach(self) -> None:
        """The engine's contents exist from READY on."""
        engine = self._status.engine
        if self._wants_kv and engine is not None and self._kv is None:
            self._kv = engine.kv
            self._forget_kv = engine.kv.listen(self._keep)
            self._snapshot_due = True

    def _keep(self, change: KvChange) -> None:
        for key in change.removed:
            self._stored.pop(key, None)
            self._removed[key] = None
        for block in change.stored:
            self._stored[block.key] = None
        if change.cleared or len(self._stored) + len(self._removed) > _WAITING_BLOCKS:
            self._snapshot_due = True
            self._forget_changes()
        self._changed.set()

    def _changes(self) -> EngineState:
        stored, removed = by_group(self._stored), by_group(self._removed)
        self._forget_changes()
        groups = self._kv.groups() if self._kv is not None and stored else ()
        return replace(self._state(), stored=stored, removed=removed, groups=groups)

    def _snapshot(self) -> Iterator[EngineState]:
        keys, groups = ((), ()) if self._kv is None else (tuple(self._kv), self._kv.groups())
        parts = [keys[start : start + _MESSAGE_BLOCKS] for start in range(0, len(keys), _MESSAGE_BLOCKS)] or [()]
        self._snapshot_due = False
        self._forget_changes()
        state = replace(self._state(), served_names=self._told_names)
        for number, part in enumerate(parts):
            first, last = number == 0, number == len(parts) - 1
            yield replace(state, snapshot=first, stored=by_group(part), groups=groups if first else (), more=not last)
            state = replace(state, after=state.sequence)

    def _state(self) -> EngineState:
        kv, after = self._kv, self._told_sequence
        self._told_phase = self._phase()
        names_before, self._told_names = self._told_names, self._status.names()
        self._told_load = self._status.load()
        self._told_load_at = asyncio.get_running_loop().time()
        self._told_sequence = 0 if kv is None else kv.sequence
        return EngineState(
            boot_epoch=self._status.boot_epoch if kv is None else kv.boot_epoch,
            sequence=self._told_sequence,
            snapshot=False,
            phase=self._status.phase,
            message=self._status.message,
            load=self._told_load,
            digest=0 if kv is None else kv.digest,
            after=after,
            served_names=() if names_before == self._told_names else self._told_names,
        )

    def _phase(self) -> tuple[ShimPhase, str]:
        return self._status.phase, self._status.message

    def _told(self) -> tuple[tuple[ShimPhase, str] | None, tuple[str, ...]]:
        return self._told_phase, self._told_names

    def _forget_changes(self) -> None:
        self._stored.clear()
        self._removed.clear()


def _is_news(load: EngineLoad, told: EngineLoad) -> bool:
    if (load.running, load.waiting, load.stalled_seconds) != (told.running, told.waiting, told.stalled_seconds):
        return True
    rates = (
        (load.prefill_tokens_per_second, told.prefill_tokens_per_second),
        (load.seconds_per_output_token, told.seconds_per_output_token),
    )
    return any(abs(now - then) > _NEW_RATE * then for now, then in rates)
