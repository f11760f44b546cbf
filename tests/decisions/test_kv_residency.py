"""Which prefix is really resident, by groups."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepinfer.engine_shim.kv_contents import BlockKey, KvGroup
from deepinfer.engine_shim.kv_residency import resident_tokens

FULL = KvGroup(0, 4)
WINDOW = KvGroup(1, 4, "sliding_window", 7)  # two blocks
STATE = KvGroup(1, 4, "mamba", 1)
WIDE = KvGroup(1, 8)
CHAIN = (11, 12, 13, 14, 15, 16)


def in_group(group: int, *blocks: int) -> set[BlockKey]:
    return {(group, block) for block in blocks}


@pytest.mark.parametrize(
    ("groups", "held", "tokens"),
    [
        ([FULL], set(), 0),
        ([FULL], in_group(0, *CHAIN), 24),
        ([FULL], in_group(0, 11, 12, 14, 15), 8),
        ([FULL], in_group(0, 12, 13), 0),
        ([], in_group(0, *CHAIN), 0),  # no group has been heard of
        ([KvGroup(0, 6)], in_group(0, *CHAIN), 0),  # of another grain
        ([KvGroup(0, 0)], in_group(0, *CHAIN), 0),
        # A window: its last two blocks, or all from the first on.
        ([FULL, WINDOW], in_group(0, *CHAIN) | in_group(1, 15, 16), 24),
        ([FULL, WINDOW], in_group(0, *CHAIN) | in_group(1, 13, 14, 16), 16),
        ([FULL, WINDOW], in_group(0, *CHAIN) | in_group(1, 11, 13, 15), 4),
        ([FULL, WINDOW], in_group(0, *CHAIN) | in_group(1, 12, 14, 16), 0),
        ([FULL, WINDOW], in_group(0, 11, 12, 13) | in_group(1, 12, 13, 15, 16), 12),
        ([FULL, WINDOW], in_group(0, 11, 12, 13) | in_group(1, 14, 15, 16), 0),
        ([WINDOW], in_group(1, 15, 16), 24),
        # A state: of the prefix's end alone.
        ([FULL, STATE], in_group(0, *CHAIN) | in_group(1, 14), 16),
        # Larger blocks are known by the hash at their end.
        ([FULL, WIDE], in_group(0, *CHAIN) | in_group(1, 12, 14), 16),
        ([FULL, WIDE], in_group(0, 11, 12, 13) | in_group(1, 12, 14), 8),
        # The last group may shorten what the first ones were asked about.
        ([WINDOW, FULL], in_group(0, 11, 12, 13) | in_group(1, 11, 12, 15, 16), 8),
        ([FULL, WINDOW, KvGroup(2, 8)], in_group(0, *CHAIN) | in_group(1, 12, 13) | in_group(2, 12, 14, 16), 0),
    ],
)
def test_the_longest_prefix_that_every_group_holds(groups: list[KvGroup], held: set[BlockKey], tokens: int) -> None:
    assert resident_tokens(CHAIN, 4, groups, held) == tokens


def holds_prefix(group: KvGroup, blocks: int, held: set[BlockKey]) -> bool:
    """Word by word what a group needs of a prefix of so many small blocks."""
    step = group.block_size // 4
    if blocks % step:
        return False
    ends = [CHAIN[number] for number in range(step - 1, blocks, step)]
    blocks_needed = -(-group.tail // group.block_size)
    needed = ends[-blocks_needed:] if group.tail else ends
    return all((group.index, end) in held for end in needed)


_groups = st.lists(st.sampled_from([(4, 0), (8, 0), (4, 1), (4, 7), (8, 9), (12, 5)]), min_size=1, max_size=3)


@given(shapes=_groups, held=st.sets(st.tuples(st.integers(0, 2), st.sampled_from(CHAIN))))
def test_it_is_the_longest_that_fits_all_groups(shapes: list[tuple[int, int]], held: set[BlockKey]) -> None:
    groups = [KvGroup(index, size, "any", tail) for index, (size, tail) in enumerate(shapes)]
    fitting = [n for n in range(len(CHAIN) + 1) if all(holds_prefix(group, n, held) for group in groups)]
    assert resident_tokens(CHAIN, 4, groups, held) == 4 * max(fitting)
