"""Which KV blocks an engine holds: the authoritative set, and a numbered log of its changes.

A reader takes a snapshot and then the changes after it; `boot_epoch` and `sequence` tell it when it missed one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KvBlock:
    """A full block. `hash` covers its tokens and, through `parent`, every token before it; 0 is the root."""

    hash: int
    parent: int
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class KvChange:
    """One step of the log: blocks that came, hashes that went."""

    sequence: int
    stored: tuple[KvBlock, ...] = ()
    removed: tuple[int, ...] = ()


class KvContents:
    """Owned by the engine, read on the same event loop by WatchState."""

    def __init__(self, boot_epoch: int) -> None:
        self.boot_epoch = boot_epoch
        self.sequence = 0
        self._blocks: dict[int, KvBlock] = {}
        self._listeners: list[Callable[[KvChange], None]] = []

    def __len__(self) -> int:
        return len(self._blocks)

    def __contains__(self, block_hash: int) -> bool:
        return block_hash in self._blocks

    def snapshot(self) -> tuple[KvBlock, ...]:
        """Every block held at `sequence`, parents before children."""
        return tuple(self._blocks.values())

    def change(self, stored: Iterable[KvBlock] = (), removed: Iterable[int] = ()) -> None:
        """Apply one change and tell the listeners. Blocks already held and hashes not held are left out."""
        added = tuple(b for b in stored if b.hash not in self._blocks)
        gone = tuple(h for h in removed if h in self._blocks)
        if not added and not gone:
            return
        for block_hash in gone:
            del self._blocks[block_hash]
        for block in added:
            self._blocks[block.hash] = block
        self.sequence += 1
        told = KvChange(self.sequence, added, gone)
        for listener in tuple(self._listeners):
            listener(told)

    def listen(self, listener: Callable[[KvChange], None]) -> Callable[[], None]:
        """Call `listener` at every change from now on; the answer ends it."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)
