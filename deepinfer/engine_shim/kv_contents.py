"""Which KV blocks an engine holds: the authoritative set, and a numbered log of its changes.

Engines tell changes only and offer no snapshot, so the shim keeps the set. A reader takes a snapshot and then the
changes after it; `boot_epoch`, `sequence` and `digest` tell it when its copy is not the set any more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

BlockKey: TypeAlias = tuple[int, int]
"""(group, name). Layers with unlike attention lie in groups, and each keeps and gives up its blocks on its own."""
Names: TypeAlias = Mapping[int, Sequence[int]]
"""Of blocks, by group."""

_WORD: Final = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class KvBlock:
    """A full block of one group, by its name (see `kv_chain.py`) and its parent's; 0 is the root.

    `token_ids` is kept only where somebody needs to tell them again.
    """

    name: int
    parent: int = 0
    token_ids: tuple[int, ...] = ()
    group: int = 0

    @property
    def key(self) -> BlockKey:
        return self.group, self.name


@dataclass(frozen=True, slots=True)
class KvGroup:
    """Layers that keep the same blocks.

    Of a prefix they need the KV of its last `tail` tokens: one less than a sliding window, 1 for a recurrent state.
    0: of all its tokens, which is also what a kind is taken for that nothing is known of.
    """

    index: int
    block_size: int  # tokens
    kind: str = "full_attention"  # the engine's word
    tail: int = 0


@dataclass(frozen=True, slots=True)
class KvChange:
    """One step of the log: first everything went, if `cleared`; then `removed` went; then `stored` came."""

    sequence: int
    stored: tuple[KvBlock, ...] = ()
    removed: tuple[BlockKey, ...] = ()
    cleared: bool = False


def digest_of(names: Names) -> int:
    """Of a set of blocks: the sum of their names, which are well mixed, each group's times an odd number of its own.

    64 bits. What comes is added, what goes is taken away, in whatever order.
    """
    return sum(sum(named) * (2 * group + 1) for group, named in names.items()) & _WORD


def by_group(keys: Iterable[BlockKey]) -> dict[int, list[int]]:
    """The same as `Names`."""
    names: dict[int, list[int]] = {}
    for group, name in keys:
        names.setdefault(group, []).append(name)
    return names


class KvContents:
    """Owned by the engine, read on the same event loop by WatchState.

    `digest` is of the keys held, `boot_epoch` of the engine process: it changes when the engine, or what is known of
    it, begins anew.
    """

    def __init__(self, boot_epoch: int) -> None:
        self.boot_epoch = boot_epoch
        self.sequence = 0
        self.digest = 0
        self._blocks: dict[BlockKey, KvBlock] = {}
        self._groups: dict[int, KvGroup] = {}
        self._listeners: list[Callable[[KvChange], None]] = []

    def __len__(self) -> int:
        return len(self._blocks)

    def __contains__(self, key: BlockKey) -> bool:
        return key in self._blocks

    def get(self, key: BlockKey) -> KvBlock | None:
        return self._blocks.get(key)

    def snapshot(self) -> tuple[KvBlock, ...]:
        """Every block held at `sequence`, in the order they came."""
        return tuple(self._blocks.values())

    def __iter__(self) -> Iterator[BlockKey]:
        """In the order they came."""
        return iter(self._blocks)

    def groups(self) -> tuple[KvGroup, ...]:
        """Those heard of, by index."""
        return tuple(self._groups[index] for index in sorted(self._groups))

    def describe(self, group: KvGroup) -> None:
        """Say what a group is, before its blocks are stored."""
        self._groups[group.index] = group

    def change(self, stored: Iterable[KvBlock] = (), removed: Iterable[BlockKey] = ()) -> None:
        """Apply one change and tell the listeners. Blocks already held and keys not held are left out."""
        gone = tuple(key for key in dict.fromkeys(removed) if self._blocks.pop(key, None) is not None)
        added = []
        for block in stored:
            if block.key not in self._blocks:
                self._blocks[block.key] = block
                added.append(block)
        if added or gone:
            came = digest_of(by_group(block.key for block in added))
            self.digest = (self.digest + came - digest_of(by_group(gone))) & _WORD
            self._tell(KvChange(self.sequence + 1, tuple(added), gone))

    def clear(self) -> None:
        """The engine has emptied its cache."""
        if self._blocks:
            self._empty()
            self._tell(KvChange(self.sequence + 1, cleared=True))

    def restart(self, boot_epoch: int) -> None:
        """The engine began anew, or changes of it were lost: nothing that was known may be believed."""
        self.boot_epoch = max(boot_epoch, self.boot_epoch + 1)
        self._groups.clear()
        self._empty()
        self._tell(KvChange(0, cleared=True))

    def listen(self, listener: Callable[[KvChange], None]) -> Callable[[], None]:
        """Call `listener` at every change from now on; the answer ends it."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def _empty(self) -> None:
        self._blocks.clear()
        self.digest = 0

    def _tell(self, change: KvChange) -> None:
        self.sequence = change.sequence
        for listener in tuple(self._listeners):
            listener(change)
