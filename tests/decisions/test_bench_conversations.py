"""What the benches of routing ask: conversations that grow by new text, and an index that holds what it should."""

from __future__ import annotations

from itertools import pairwise

from benchmarks.kv_index import BLOCK_SIZE, filled, names_held
from benchmarks.routing_overhead.conversations import TURNS, Conversations
from deepinfer.control_plane.router.kv_index import KvIndex
from deepinfer.engine_shim.kv_chain import chain, token_bytes

WORDS = [f"word{number}" for number in range(500)]


def test_a_conversation_begins_like_all_others_and_grows_by_what_nobody_has_said() -> None:
    conversations = Conversations(WORDS, 1)
    one, other = list(conversations.prompts("yes")), list(conversations.prompts("yes"))
    assert len(one) == TURNS and one[0][0] == other[0][0]
    for before, after in pairwise(one):
        assert after[: len(before)] == before
        assert [message["role"] for message in after[len(before) :]] == ["assistant", "user"]
    said = [prompt[-1]["content"] for prompt in one + other]
    assert len(set(said)) == 2 * TURNS
    assert list(Conversations(WORDS, 1).prompts("yes")) == one


def test_each_replica_of_the_index_holds_more_of_the_prompt_than_the_one_before() -> None:
    prompt = token_bytes(range(64 * BLOCK_SIZE))
    index = KvIndex()
    shelves = filled(index, 4, 1000, prompt)
    assert [shelf.blocks for shelf in shelves] == [250] * 4
    assert [len(names_held(prompt, share, 4)) for share in (1, 2, 3, 4)] == [16, 32, 48, 64]
    held = index.resident(chain(prompt, BLOCK_SIZE), BLOCK_SIZE, shelves)
    assert held == [share * 16 * BLOCK_SIZE for share in (1, 2, 3, 4)]
