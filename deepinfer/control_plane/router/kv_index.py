"""Which replicas of a deployment hold which KV blocks: one mask of replicas for each block.

A prompt is looked up in all replicas at once, by as many dictionary look-ups as it has blocks, however many replicas
there are. A replica's blocks lie on its shelf, which is one bit of the masks. What is cleared is not looked up any more
from that moment on, and swept out little by little, with each message that comes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Final

from deepinfer.engine_shim.kv_contents import BlockKey, KvGroup, Names
from deepinfer.engine_shim.kv_residency import resident_tokens

_SWEPT_AT_ONCE: Final = 4096


class KvIndex:
    """Of one deployment. About 90 bytes a block, and up to 130 where several hold it."""

    def __init__(self) -> None:
        self._holders: dict[int, dict[int, int]] = {}  # group -> name -> mask
        self._used = 0
        self._dead = 0  # shelves that were cleared, and not yet swept
        self._sweep: Iterator[None] | None = None

    def __len__(self) -> int:
        """Blocks, however many hold them; those not yet swept too."""
        return sum(map(len, self._holders.values()))

    def shelf(self) -> KvShelf:
        return KvShelf(self)

    def resident(self, chain: Sequence[int], block_size: int, shelves: Sequence[KvShelf]) -> list[int]:
        """Tokens of the longest prefix of a chain of block names that each of `shelves` holds."""
        blocks = self._prefixes(chain, shelves)
        return [
            shelf.resident(chain, blocks[shelf.bit], block_size) if blocks.get(shelf.bit) else 0 for shelf in shelves
        ]

    def held(self, key: BlockKey, bit: int) -> bool:
        return bool(self._holders.get(key[0], {}).get(key[1], 0) & bit)

    def take_bit(self) -> int:
        """A shelf's own, which nothing has."""
        free = ~self._used
        bit = free & -free
        self._used |= bit
        return bit

    def drop_bit(self, bit: int) -> None:
        """Nothing has it any more."""
        self._dead |= bit

    def put(self, names: Names, bit: int) -> None:
        for group, named in names.items():
            holders = self._holders.setdefault(group, {})
            known = holders.setdefault
            for name in named:
                mask = known(name, bit)  # itself, so that masks of one replica take no memory of their own
                if not mask & bit:
                    holders[name] = mask | bit
        self._sweep_on()

    def take(self, names: Names, bit: int) -> None:
        for group, named in names.items():
            holders = self._holders.get(group, {})
            for name in named:
                mask = holders.get(name, 0) & ~bit
                if mask:
                    holders[name] = mask
                else:
                    holders.pop(name, None)
        self._sweep_on()

    def _prefixes(self, chain: Sequence[int], shelves: Sequence[KvShelf]) -> dict[int, int]:
        """Bit -> blocks that its shelf may hold of the chain, from the left: by the group that keeps whole prefixes."""
        whole: dict[int, int] = {}  # group -> the shelves that it decides about
        for shelf in shelves:
            whole[shelf.whole] = whole.get(shelf.whole, 0) | shelf.bit
        found: dict[int, int] = {}
        for group, bits in whole.items():
            if group < 0:  # no group keeps whole prefixes, so each shelf is looked at by itself
                found |= dict.fromkeys(_bits(bits), len(chain))
            else:
                self._walk(chain, self._holders.get(group, {}), bits, found)
        return found

    @staticmethod
    def _walk(chain: Sequence[int], holders: dict[int, int], held: int, found: dict[int, int]) -> None:
        known = holders.get
        for number, name in enumerate(chain):
            now = held & known(name, 0)
            if now != held:
                for bit in _bits(held ^ now):
                    found[bit] = number
                if not now:
                    return
                held = now
        for bit in _bits(held):
            found[bit] = len(chain)

    def _sweep_on(self) -> None:
        if self._sweep is None and self._dead:
            self._sweep = self._swept()
        if self._sweep is not None and next(self._sweep, self) is self:
            self._sweep = None

    def _swept(self) -> Iterator[None]:
        dead = self._dead
        for holders in list(self._holders.values()):
            names = iter(list(holders))
            while some := list(islice(names, _SWEPT_AT_ONCE)):
                for name in some:
                    mask = holders.get(name, 0)
                    if mask & dead:
                        if mask & ~dead:
                            holders[name] = mask & ~dead
                        else:
                            del holders[name]
                yield
        self._dead &= ~dead
        self._used &= ~dead


class KvShelf:
    """What one replica holds; a `KvMirror` keeps it."""

    def __init__(self, index: KvIndex) -> None:
        self._index = index
        self.bit = index.take_bit()
        self.blocks = 0  # held
        self.groups: tuple[KvGroup, ...] = ()
        self.whole = -1
        self._chained = 0  # tokens of a block of the chains it is asked for

    def __contains__(self, key: BlockKey) -> bool:
        return self._index.held(key, self.bit)

    def describe(self, groups: tuple[KvGroup, ...], block_size: int) -> None:
        """What its groups are. The one that keeps whole prefixes in blocks of the chain's size is asked first."""
        if (groups, block_size) != (self.groups, self._chained):
            self.groups, self._chained = groups, block_size
            plain = (group.index for group in groups if not group.tail and group.block_size == block_size)
            self.whole = next(plain, -1)

    @property
    def index(self) -> KvIndex:
        """Which it is of."""
        return self._index

    def put(self, names: Names) -> None:
        self._index.put(names, self.bit)
        self.blocks += sum(map(len, names.values()))

    def take(self, names: Names) -> None:
        self._index.take(names, self.bit)
        self.blocks -= sum(map(len, names.values()))

    def clear(self) -> None:
        if self.blocks:
            self._index.drop_bit(self.bit)
            self.bit = self._index.take_bit()
        self.blocks = 0

    def resident(self, chain: Sequence[int], blocks: int, block_size: int) -> int:
        """Of the chain's first blocks, which the group of `whole` holds."""
        if len(self.groups) == 1 and self.whole >= 0:
            return blocks * block_size
        return resident_tokens(chain[:blocks], block_size, self.groups, self)


def _bits(mask: int) -> Iterator[int]:
    while mask:
        bit = mask & -mask
        yield bit
        mask ^= bit
