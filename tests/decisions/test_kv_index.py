"""Which replica holds how much of a prompt: the index against plain sets, through everything that can happen to it."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from deepinfer.control_plane.router.block_chains import BlockChains
from deepinfer.control_plane.router.claims import Claims
from deepinfer.control_plane.router.kv_index import KvIndex, KvShelf
from deepinfer.engine_shim.kv_chain import chain, token_bytes
from deepinfer.engine_shim.kv_contents import BlockKey, KvGroup
from deepinfer.engine_shim.kv_residency import resident_tokens

SIZE = 4
PLAIN = (KvGroup(0, SIZE),)
HYBRID = (KvGroup(0, SIZE), KvGroup(1, 2 * SIZE, "sliding_window", 7))
ONLY_TAILS = (KvGroup(0, SIZE, "mamba", 1),)
CHAIN = list(range(1, 13))

_steps = st.lists(
    st.tuples(
        st.sampled_from(("put", "take", "clear")),
        st.integers(0, 3),
        st.integers(0, 1),
        st.lists(st.sampled_from(CHAIN), min_size=1, max_size=12, unique=True),
    ),
    max_size=40,
)


def shelves_of(index: KvIndex) -> list[KvShelf]:
    shelves = [index.shelf() for _ in range(4)]
    for shelf, groups in zip(shelves, (PLAIN, HYBRID, ONLY_TAILS, PLAIN), strict=True):
        shelf.describe(groups, SIZE)
    return shelves


@settings(max_examples=200)
@given(_steps)
def test_it_answers_as_sets_would(steps: list[tuple[str, int, int, list[int]]]) -> None:
    index = KvIndex()
    shelves = shelves_of(index)
    sets: list[set[BlockKey]] = [set() for _ in shelves]
    for what, at, group, names in steps:
        group = group if len(shelves[at].groups) > 1 else 0
        keys = {(group, name) for name in names}
        if what == "put":
            new = keys - sets[at]
            shelves[at].put({group: [name for _, name in new]})
            sets[at] |= keys
        elif what == "take":
            shelves[at].take({group: [name for _, name in keys & sets[at]]})
            sets[at] -= keys
        else:
            shelves[at].clear()
            sets[at].clear()
        expected = [resident_tokens(CHAIN, SIZE, s.groups, held) for s, held in zip(shelves, sets, strict=True)]
        assert index.resident(CHAIN, SIZE, shelves) == expected
        assert [shelf.blocks for shelf in shelves] == list(map(len, sets))


def test_what_was_cleared_is_swept_out_and_its_places_are_used_again() -> None:
    index = KvIndex()
    shelf = index.shelf()
    shelf.describe(PLAIN, SIZE)
    other = index.shelf()
    for round_ in range(20):
        shelf.put({0: [round_ * 10_000 + name for name in range(10_000)]})
        shelf.clear()
        other.put({0: [10**9 + round_]})
    for name in range(100):
        other.put({0: [2 * 10**9 + name]})
    assert len(index) < 20_000
    assert shelf.bit < 1 << 16


def test_a_shelf_is_asked_by_its_own_blocks_only() -> None:
    index = KvIndex()
    one, two = index.shelf(), index.shelf()
    for shelf in (one, two):
        shelf.describe(PLAIN, SIZE)
    one.put({0: CHAIN[:3]})
    two.put({0: CHAIN[3:]})
    assert index.resident(CHAIN, SIZE, [two, one]) == [0, 3 * SIZE]
    assert index.resident([], SIZE, [one]) == [0]


@given(
    st.lists(st.integers(0, 2**32 - 1), max_size=200),
    st.lists(st.integers(0, 2**32 - 1), max_size=200),
    st.sampled_from((1, 3, 4)),
    st.integers(0, 2**64 - 1),
    st.sampled_from((0, 77)),
)
def test_remembered_names_are_those_that_a_hash_gives(
    first: list[int], rest: list[int], size: int, root: int, extra: int
) -> None:
    chains = BlockChains()
    for tokens in (first, first + rest, first, first[:1] + rest):
        packed = token_bytes(tokens)
        assert chains.names(packed, size, root, extra) == chain(packed, size, root, extra)


def test_a_claim_holds_until_the_second_word_after_its_request() -> None:
    claims = Claims()
    claims.claim(CHAIN[2:6])
    assert claims.more(CHAIN, 2) == 4
    assert claims.more(CHAIN, 1) == 0
    claims.end(CHAIN[2:6])
    claims.heard()
    assert claims.more(CHAIN, 2) == 4
    claims.heard()
    assert claims.more(CHAIN, 2) == 0 and not len(claims)


def test_a_block_that_two_requests_fill_is_claimed_until_both_are_over() -> None:
    claims = Claims()
    claims.claim(CHAIN[:4])
    claims.claim(CHAIN[:6])
    claims.end(CHAIN[:6])
    claims.heard()
    claims.heard()
    assert claims.more(CHAIN, 0) == 4
