"""vLLM's KV events, as bytes that vLLM made, and what they make of the contents."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import msgspec
import pytest

from deepinfer.engine_shim.engines.vllm import kv_names
from deepinfer.engine_shim.engines.vllm.kv_effects import apply
from deepinfer.engine_shim.engines.vllm.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, EventDecoder
from deepinfer.engine_shim.engines.vllm.kv_names import BlockNames, block_hash
from deepinfer.engine_shim.kv_chain import chain, extra_digest, next_name, root_of, token_bytes
from deepinfer.engine_shim.kv_contents import KvContents, KvGroup
from deepinfer.engine_shim.kv_residency import resident_tokens

# Made by the structs of vLLM 0.32.0's kv_events.py. Five events: a salted prompt of two blocks in group 0, its last
# block alone in group 1 (a sliding window of 5), a block of the adapter "sql" with an image, a block offloaded to the
# CPU, the removal from group 1, and the clearing.
OF_032 = bytes.fromhex(
    "93cb3ff8000000000000968ba474797065ab426c6f636b53746f726564ac626c6f636b5f68617368657392cf800000000000000507b1"
    "706172656e745f626c6f636b5f68617368c0a9746f6b656e5f696473980001020304050607aa626c6f636b5f73697a6504a76c6f7261"
    "5f6964c0a66d656469756da3475055a96c6f72615f6e616d65c0aa65787472615f6b6579739291a473616c74c0a967726f75705f6964"
    "7800b26b765f63616368655f737065635f6b696e64ae66756c6c5f617474656e74696f6e8ba474797065ab426c6f636b53746f726564"
    "ac626c6f636b5f6861736865739107b1706172656e745f626c6f636b5f68617368c0a9746f6b656e5f696473980001020304050607aa"
    "626c6f636b5f73697a6504a76c6f72615f6964c0a66d656469756da3475055a96c6f72615f6e616d65c0a967726f75705f69647801b2"
    "6b765f63616368655f737065635f6b696e64ae736c6964696e675f77696e646f77bc6b765f63616368655f737065635f736c6964696e"
    "675f77696e646f77058ca474797065ab426c6f636b53746f726564ac626c6f636b5f6861736865739109b1706172656e745f626c6f63"
    "6b5f6861736807a9746f6b656e5f6964739401020304aa626c6f636b5f73697a6504a76c6f72615f696403a66d656469756da3475055"
    "a96c6f72615f6e616d65a373716caa65787472615f6b6579739192a373716c92a3696d6702a967726f75705f69647800b26b765f6361"
    "6368655f737065635f6b696e64ae66756c6c5f617474656e74696f6eaa73657373696f6e5f6964a1738aa474797065ab426c6f636b53"
    "746f726564ac626c6f636b5f686173686573910bb1706172656e745f626c6f636b5f68617368c0a9746f6b656e5f6964739401020304"
    "aa626c6f636b5f73697a6504a76c6f72615f6964c0a66d656469756da3435055a96c6f72615f6e616d65c0a967726f75705f69647800"
    "a86c6f63616c697479a54c4f43414c84a474797065ac426c6f636b52656d6f766564ac626c6f636b5f6861736865739107a66d656469"
    "756da3475055a967726f75705f6964780181a474797065b0416c6c426c6f636b73436c656172656400"
)
# The same, with VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES=0: one block stored and removed, hashes as 32 bytes.
OF_032_BYTES = bytes.fromhex(
    "93cb3ff80000000000009289a474797065ab426c6f636b53746f726564ac626c6f636b5f68617368657391c420000102030405060708"
    "090a0b0c0d0e0f101112131415161718191a1b1c1d1e1fb1706172656e745f626c6f636b5f68617368c4200102030405060708090a0b"
    "0c0d0e0f101112131415161718191a1b1c1d1e1f20a9746f6b656e5f6964739401020304aa626c6f636b5f73697a6504a76c6f72615f"
    "6964c0a66d656469756da3475055a96c6f72615f6e616d65c0a967726f75705f6964780084a474797065ac426c6f636b52656d6f7665"
    "64ac626c6f636b5f68617368657391c420000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1fa66d656469"
    "756da3475055a967726f75705f6964780000"
)


def old(*events: Any, as_map: bool = False) -> bytes:
    """In the order of 0.11: a tag, then block_hashes, parent_block_hash, token_ids, block_size, lora_id, medium."""
    return msgspec.msgpack.encode({"ts": 1.5, "events": events} if as_map else [1.5, events])


def contents_after(*payloads: bytes, grain: int = 4) -> KvContents:
    contents, names = KvContents(1), BlockNames(grain)
    for payload in payloads:
        apply(EventDecoder().decode(payload), names, contents)
    return contents


def name(*tokens: int) -> int:
    """Of the first block of a prompt."""
    return next_name(0, token_bytes(tokens))


def test_the_map_form_of_032() -> None:
    salted, window, adapter, offloaded, gone, cleared = EventDecoder().decode(OF_032)
    assert salted == BlockStored(
        block_hashes=(2**63 + 5, 7),
        parent_block_hash=None,
        token_ids=tuple(range(8)),
        block_size=4,
        medium="GPU",
        extra_keys=(("salt",), None),
        group_idx=0,
        kv_cache_spec_kind="full_attention",
    )
    assert isinstance(window, BlockStored)
    assert (window.group_idx, window.kv_cache_spec_sliding_window) == (1, 5)
    assert isinstance(adapter, BlockStored)
    assert (adapter.lora_id, adapter.lora_name, adapter.parent_block_hash) == (3, "sql", 7)
    assert offloaded.medium == "CPU"
    assert gone == BlockRemoved(block_hashes=(7,), medium="GPU", group_idx=1)
    assert cleared == AllBlocksCleared()


def test_hashes_of_bytes_are_what_vllm_sends_as_integers() -> None:
    stored, removed = EventDecoder().decode(OF_032_BYTES)
    assert isinstance(stored, BlockStored)
    assert isinstance(removed, BlockRemoved)
    said = stored.block_hashes[0]
    assert removed.block_hashes == (said,) == (bytes(range(32)),)
    assert block_hash(said) == int.from_bytes(bytes(range(32)), "big") & ((1 << 64) - 1)
    assert block_hash(-1) == 2**64 - 1
    assert len(contents_after(OF_032_BYTES)) == 0


@pytest.mark.parametrize("as_map", [False, True])
@pytest.mark.parametrize(
    ("said", "event"),
    [
        (["BlockStored", [5], None, [1, 2], 2, None], BlockStored((5,), None, (1, 2), 2)),
        (["BlockStored", [5], 4, [1, 2], 2, None, "GPU"], BlockStored((5,), 4, (1, 2), 2, None, "GPU")),
        (
            ["BlockStored", [5], 4, [1, 2], 2, 1, "GPU", "sql", [["sql"]]],
            BlockStored((5,), 4, (1, 2), 2, 1, "GPU", "sql", (("sql",),)),
        ),
        (["BlockRemoved", [5, 6]], BlockRemoved((5, 6))),
        (["BlockRemoved", [5, 6], "GPU"], BlockRemoved((5, 6), "GPU")),
        (["AllBlocksCleared"], AllBlocksCleared()),
    ],
)
def test_the_positional_form_and_what_it_may_lack(said: list[Any], event: object, as_map: bool) -> None:
    assert EventDecoder().decode(old(said, as_map=as_map)) == (event,)


def test_an_unknown_kind_is_skipped_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    decoder = EventDecoder()
    payload = old(["BlockMoved", [1]], {"type": "BlockMoved"}, [], ["BlockRemoved", [5]])
    with caplog.at_level(logging.WARNING):
        assert decoder.decode(payload) == decoder.decode(payload) == (BlockRemoved((5,)),)
    assert sum("'BlockMoved'" in record.message for record in caplog.records) == 1


@pytest.mark.parametrize(
    "payload",
    [
        old(["BlockStored", [5], None, [2**32], 1, None]),
        old(["BlockStored", [5], None, [1], 0, None]),
        b"",
        b"\xc1",
        b"\x90",
        old(["BlockStored", [5]]),
        old(["BlockRemoved", "all"]),
        old(7),
        b"\x80",
    ],
)
def test_what_is_no_batch_is_an_error(payload: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        EventDecoder().decode(payload)


def test_contents_of_a_batch_know_groups_adapters_and_salt() -> None:
    contents = KvContents(1)
    apply(EventDecoder().decode(OF_032)[:4], BlockNames(4), contents)
    first, second = chain(token_bytes(range(8)), 4, extra=extra_digest(["salt"]))
    pictured = next_name(second, token_bytes([1, 2, 3, 4]), extra_digest([["img", 2]]))  # the adapter is in the root
    assert tuple(contents) == ((0, first), (0, second), (1, second), (0, pictured))
    assert contents.groups() == (KvGroup(0, 4), KvGroup(1, 4, "sliding_window", 4))


def test_an_adapter_s_blocks_are_others() -> None:
    said = ["BlockStored", [5], None, [1, 2, 3, 4], 4, 1, "GPU", "sql", [["sql"]]]
    assert tuple(contents_after(old(said))) == ((0, next_name(root_of("sql"), token_bytes([1, 2, 3, 4]))),)
    assert root_of("sql") != root_of("") == 0


def test_what_follows_an_unknown_block_is_left_out() -> None:
    contents = contents_after(old(["BlockStored", [6], 5, [1, 2, 3, 4], 4, None]))
    assert (len(contents), contents.digest) == (0, 0)


def test_a_block_that_went_can_still_be_followed() -> None:
    """As with a sliding window that has moved on."""
    first, second = (["BlockStored", [5], None, [1] * 4, 4, None], ["BlockStored", [6], 5, [2] * 4, 4, None])
    assert tuple(contents_after(old(first, ["BlockRemoved", [5]]), old(second))) == (
        (0, chain(token_bytes([1] * 4 + [2] * 4), 4)[1]),
    )


def test_a_large_block_is_named_by_its_grains() -> None:
    said = ["BlockStored", [5], None, list(range(8)), 8, None]
    assert tuple(contents_after(old(said))) == ((0, chain(token_bytes(range(8)), 4)[1]),)
    assert tuple(contents_after(old(said), grain=0)) == ((0, name(*range(8))),)


def test_names_of_what_went_are_not_kept_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_names, "_SPARE", 2)
    names, contents = BlockNames(1), KvContents(1)
    for said in range(10):
        batch = old(["BlockStored", [said], None, [said], 1, None], ["BlockRemoved", [said - 1]])
        apply(EventDecoder().decode(batch), names, contents)
    assert list(names.of(range(10))) == [name(said) for said in (8, 9)]


def test_a_removal_in_one_group_leaves_the_others() -> None:
    contents, names = KvContents(1), BlockNames(4)
    apply(EventDecoder().decode(OF_032)[:5], names, contents)
    assert len(contents) == 3
    assert not [key for key in contents if key[0] == 1]
    apply(EventDecoder().decode(OF_032)[5:], names, contents)
    assert len(contents) == contents.digest == 0


def test_events_of_a_batch_act_in_their_order() -> None:
    def stored(said: int) -> list[Any]:
        return ["BlockStored", [said], None, [said, 2], 2, None, "GPU"]

    gone, cleared = ["BlockRemoved", [5]], ["AllBlocksCleared"]
    assert (0, name(5, 2)) in contents_after(old(stored(5), gone, stored(5)))
    assert (0, name(5, 2)) not in contents_after(old(stored(5), stored(6), gone))
    assert tuple(contents_after(old(stored(5), gone, cleared, stored(6)))) == ((0, name(6, 2)),)
    told: list[object] = []
    names, contents = BlockNames(2), KvContents(1)
    apply(EventDecoder().decode(old(stored(5), stored(6))), names, contents)
    contents.listen(told.append)
    apply(EventDecoder().decode(old(gone, ["BlockRemoved", [6]], stored(7), stored(8))), names, contents)
    assert len(told) == 1


def test_kinds_say_how_much_of_a_prefix_a_group_needs() -> None:
    def group(**said: Any) -> KvGroup:
        event = {"type": "BlockStored", "block_hashes": [1], "parent_block_hash": None, "token_ids": [1, 2]}
        return contents_after(old(event | {"block_size": 2} | said)).groups()[0]

    assert group() == KvGroup(0, 2, "full_attention", 0)
    assert group(kv_cache_spec_kind="mamba").tail == 1
    assert group(kv_cache_spec_kind="sliding_window_mla", kv_cache_spec_sliding_window=128).tail == 127
    assert group(kv_cache_spec_kind="chunked_local_attention").tail == 0


def test_a_hybrid_model_s_events_and_what_is_really_resident() -> None:
    """Sent by vLLM 0.32.0 for a Gemma 3 of 4 layers, 3 of them with a window of 100: a prompt of 225 tokens, 40 more.

    The windows' groups were told 7 blocks of tokens and kept the last 4; of the block made while decoding, none.
    """
    lines = Path(__file__).with_name("vllm_hybrid_batches.hex").read_text().split()
    contents = contents_after(*map(bytes.fromhex, lines), grain=32)
    windows = [KvGroup(index, 32, "sliding_window", 99) for index in range(3)]
    assert contents.groups() == (*windows, KvGroup(3, 32))
    names = [name for group, name in contents if group == 3]
    assert len(names) == 8
    for window in windows:
        assert [said for said in names if (window.index, said) in contents] == names[3:7]
    assert resident_tokens(names, 32, contents.groups(), contents) == 7 * 32
    assert resident_tokens(names, 32, [KvGroup(3, 32)], contents) == 8 * 32
    contents.change(removed=[(1, names[3])])
    assert (0, names[3]) in contents
    assert resident_tokens(names, 32, contents.groups(), contents) == 0


def test_a_tier_s_clearing_clears_only_what_lies_on_the_device() -> None:
    stored = ["BlockStored", [5], None, [1, 2], 2, None, "GPU"]
    assert len(contents_after(old(stored, {"type": "TierBlocksCleared", "medium": "CPU"}))) == 1
    assert len(contents_after(old(stored, {"type": "TierBlocksCleared", "medium": "GPU"}))) == 0
