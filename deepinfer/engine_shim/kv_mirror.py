"""A reader's copy of what an engine holds, kept from WatchState's messages; and a watch that heals it.

A copy that may be wrong is worse than none: whatever does not fit together is a `StateDrift`, and the copy is empty
until the next snapshot.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Final, Protocol

from deepinfer.engine_shim.kv_contents import BlockKey, KvGroup, Names, digest_of
from deepinfer.engine_shim.state_wire import EngineState
from deepinfer.fleet.errors import EngineFailed

log = logging.getLogger(__name__)

_WORD: Final = (1 << 64) - 1


class StateDrift(EngineFailed):
    """The copy of an engine's KV contents is not what the engine holds; take a new snapshot."""


class Shelf(Protocol):
    """Where a copy lies."""

    def put(self, names: Names) -> None:
        """They are held from now on."""
        ...

    def take(self, names: Names) -> None:
        """They are held no more."""
        ...

    def clear(self) -> None:
        """None are."""
        ...


class KeySet(set[BlockKey]):
    """The plainest shelf."""

    def put(self, names: Names) -> None:
        self.update((group, name) for group, named in names.items() for name in named)

    def take(self, names: Names) -> None:
        self.difference_update((group, name) for group, named in names.items() for name in named)


class KvMirror:
    """Apply every message of one watch, in order; the copy lies in `shelf`, empty at first."""

    def __init__(self, shelf: Shelf) -> None:
        self.boot_epoch = 0
        self.sequence = 0
        self.digest = 0
        self.groups: tuple[KvGroup, ...] = ()
        self._shelf = shelf
        self._in_snapshot = False
        self._whole = False

    @property
    def whole(self) -> bool:
        """Whether a snapshot has come to its end and all that followed fitted."""
        return self._whole

    def apply(self, state: EngineState) -> None:
        """`StateDrift` when a message is missing or the copy is not the engine's set; the copy is empty then."""
        trouble = self._misfit(state)
        if not trouble:
            self._take(state)
            if not state.more and self.digest != state.digest:
                trouble = f"after sequence {state.sequence} the digests differ"
        if trouble:
            self.forget()
            raise StateDrift(f"The copy of the engine's KV contents has drifted: {trouble}. Watch again.")

    def forget(self) -> None:
        """Hold nothing until the next snapshot."""
        self._shelf.clear()
        self.groups, self.sequence, self.digest = (), 0, 0
        self._in_snapshot = self._whole = False

    def _misfit(self, state: EngineState) -> str:
        if state.snapshot:
            is_older = (state.boot_epoch, state.sequence) < (self.boot_epoch, self.sequence)
            return "a snapshot came that is older than what came before it" if self._whole and is_older else ""
        if not self._whole and not self._in_snapshot:
            return "it has not begun with a snapshot"
        if state.boot_epoch != self.boot_epoch:
            return "the engine began anew"
        if state.after != self.sequence:
            return f"it is at sequence {self.sequence}, and the message builds on {state.after}"
        if state.more and not self._in_snapshot:
            return "a part of a snapshot came outside of one"
        return ""

    def _take(self, state: EngineState) -> None:
        if state.snapshot:
            self.forget()
            self.boot_epoch = state.boot_epoch
        self.groups = state.groups or self.groups
        if state.removed:
            self._shelf.take(state.removed)
        if state.stored:
            self._shelf.put(state.stored)
        self.digest = (self.digest + digest_of(state.stored) - digest_of(state.removed)) & _WORD
        self.sequence = state.sequence
        self._in_snapshot, self._whole = state.more, not state.more


class Watched(Protocol):
    """What has a WatchState: `EngineClient`."""

    def watch(self, *, kv: bool = False) -> AsyncIterator[EngineState]: ...


async def mirrored(engine: Watched, mirror: KvMirror) -> AsyncGenerator[EngineState, None]:
    """The engine's states, each one already applied to `mirror`. Where it drifted, the watch is opened again.

    Ends, and fails with `EngineFailed`, as `watch` does, and when twice not even a snapshot fitted together; the
    mirror is empty then.
    """
    try:
        in_vain = 0
        while True:
            in_vain += 1
            try:
                async with aclosing(engine.watch(kv=True)) as states:  # type: ignore[type-var]
                    async for state in states:
                        mirror.apply(state)
                        in_vain = 0 if mirror.whole else in_vain
                        yield state
                return
            except StateDrift as drift:
                log.warning("%s", drift)
                if in_vain > 1:
                    raise
    finally:
        mirror.forget()
