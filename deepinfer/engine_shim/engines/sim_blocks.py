"""A simulated engine's KV cache: blocks by name, shared by prefix, given up in LRU order.

Counts only; there is nothing in the blocks. A block is in use (a running request needs it), idle (kept for a later
prompt with the same beginning), or not there. A request reserves what it may need at its start, so none is preempted.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence

from deepinfer.engine_shim.kv_chain import next_name, token_bytes
from deepinfer.engine_shim.kv_contents import BlockKey, KvBlock, KvContents


def chained_blocks(token_ids: Sequence[int], block_size: int, parent: int = 0) -> Iterator[KvBlock]:
    """The full blocks of a sequence that follow `parent`."""
    for start in range(0, len(token_ids) - block_size + 1, block_size):
        tokens = tuple(token_ids[start : start + block_size])
        block = KvBlock(next_name(parent, token_bytes(tokens)), parent, tokens)
        yield block
        parent = block.name


class BlockCache:
    """`capacity` blocks. Changes gather until `publish`, so that a step is one change of the contents."""

    def __init__(self, capacity: int, contents: KvContents) -> None:
        self.capacity = capacity
        self._contents = contents
        self._users: dict[int, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._reserved = 0
        self._stored: list[KvBlock] = []
        self._removed: list[BlockKey] = []

    @property
    def used(self) -> int:
        """Blocks that running requests hold."""
        return len(self._users) + self._reserved

    def acquire(self, names: Sequence[int]) -> int:
        """Hold the longest prefix of `names` that is here; the answer is how many."""
        for held, name in enumerate(names):
            if not self._hold(name):
                return held
        return len(names)

    def reserve(self, blocks: int) -> bool:
        """Set room aside, at the expense of idle blocks. False, and nothing changes, when there is not enough."""
        if self.used + blocks > self.capacity:
            return False
        self._reserved += blocks
        while self.used + len(self._idle) > self.capacity:
            oldest, _ = self._idle.popitem(last=False)
            self._removed.append((0, oldest))
        return True

    def store(self, block: KvBlock) -> None:
        """A reserved block is full now. If another request made the same one, its room is given back."""
        self._reserved -= 1
        if not self._hold(block.name):
            self._users[block.name] = 1
            self._stored.append(block)

    def release(self, names: Sequence[int], reserved: int) -> None:
        """A request is over. Its last blocks become the oldest: a prefix is worth more than what follows it."""
        self._reserved -= reserved
        for name in reversed(names):
            self._users[name] -= 1
            if not self._users[name]:
                del self._users[name]
                self._idle[name] = None

    def receive(self, blocks: Sequence[KvBlock]) -> None:
        """Blocks that another engine computed, for the next prompt that has them; none, if not all find room."""
        names = [block.name for block in blocks]
        held = self.acquire(names)
        if not self.reserve(len(blocks) - held):
            self.release(names[:held], 0)
            return
        for block in blocks[held:]:
            self.store(block)
        self.release(names, 0)
        self.publish()

    def publish(self) -> None:
        """Tell what changed since the last time."""
        if self._stored or self._removed:
            gone, self._removed = self._removed, []
            stored, self._stored = self._stored, []
            self._contents.change(removed=gone)  # first: a block may have gone and come back
            self._contents.change(stored=stored)

    def _hold(self, name: int) -> bool:
        if name in self._idle:
            del self._idle[name]
            self._users[name] = 1
        elif name in self._users:
            self._users[name] += 1
        else:
            return False
        return True
