"""How much of a prompt an engine holds. Pure: names and groups in, tokens out.

The answer is what the engine's own lookup would find, never more, but for two things an engine does not publish: it
computes at least the last token of a prompt again, and with speculative layers it drops one block more.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from deepinfer.engine_shim.kv_contents import BlockKey, KvGroup


class Holds(Protocol):
    """A set of block keys: `KvContents`, `KvMirror`, a plain set."""

    def __contains__(self, key: BlockKey, /) -> bool: ...


def resident_tokens(chain: Sequence[int], block_size: int, groups: Collection[KvGroup], held: Holds) -> int:
    """The longest prefix of a chain of block names, in tokens, whose KV every group holds.

    `chain[i]` names the first (i + 1) * `block_size` tokens; a group whose blocks are larger knows a block
    by the name at its end. A group with blocks of another grain cannot be answered for, so nothing is resident then;
    the same when no group is known.
    """
    if not groups or any(group.block_size % block_size or not group.block_size for group in groups):
        return 0
    tokens = len(chain) * block_size
    before = -1
    while tokens != before:  # each group can only shorten what the ones before it left
        before = tokens
        for group in groups:
            tokens = _in_group(chain[: tokens // block_size], block_size, group, held)
    return tokens


def _in_group(chain: Sequence[int], block_size: int, group: KvGroup, held: Holds) -> int:
    step = group.block_size // block_size
    ends = chain[step - 1 :: step]
    blocks = _tail_from_the_right(ends, group, held) if group.tail else _all_from_the_left(ends, group.index, held)
    return blocks * group.block_size


def _all_from_the_left(ends: Sequence[int], group: int, held: Holds) -> int:
    for number, name in enumerate(ends):
        if (group, name) not in held:
            return number
    return len(ends)


def _tail_from_the_right(ends: Sequence[int], group: KvGroup, held: Holds) -> int:
    """The longest prefix that ends with enough blocks in a row, or that is held from its first block on."""
    enough = -(-group.tail // group.block_size)
    run = 0
    for number in range(len(ends) - 1, -1, -1):
        run = run + 1 if (group.index, ends[number]) in held else 0
        if run == enough:
            return number + enough
    return run
