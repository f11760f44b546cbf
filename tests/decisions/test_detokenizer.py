"""Streamed text is the whole text, and never half a character."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepinfer.engine_shim.text.byte_tokenizer import END, ByteTokenizer
from deepinfer.engine_shim.text.detokenizer import PATIENCE, WindowDetokenizer
from deepinfer.engine_shim.text.model_tokenizer import ModelTokenizer
from deepinfer.engine_shim.text.tokenizer import Tokenizer
from deepinfer.fleet.errors import EngineWillNotStart, ModelUnavailable
from tests.tokenizer_folders import byte_fallback_folder, byte_level_folder

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
CUTS = st.lists(st.integers(0, 60), max_size=8)
KINDS = ("bytes", "byte-level", "byte-fallback")


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    folder = tmp_path_factory.mktemp("tokenizers")
    return {
        "bytes": ByteTokenizer(),
        "byte-level": ModelTokenizer(byte_level_folder(folder / "byte-level")),
        "byte-fallback": ModelTokenizer(byte_fallback_folder(folder / "byte-fallback")),
    }


def streamed(tokenizer: Tokenizer, token_ids: list[int], cuts: list[int], *, skip: bool = True) -> list[str]:
    """The pieces when the tokens come in these groups; the last one is what is flushed."""
    edges = sorted({0, len(token_ids), *(cut for cut in cuts if cut < len(token_ids))})
    detokenizer = tokenizer.detokenizer(skip_special_tokens=skip)
    pieces = [detokenizer.feed(token_ids[start:end]) for start, end in pairwise(edges)]
    return [*pieces, detokenizer.flush()]


@pytest.mark.parametrize("kind", KINDS)
@given(text=st.text(max_size=30), cuts=CUTS)
def test_text_comes_back_in_whole_characters(
    tokenizers: dict[str, Tokenizer], kind: str, text: str, cuts: list[int]
) -> None:
    tokenizer = tokenizers[kind]
    token_ids = tokenizer.encode(text, add_special_tokens=False)
    pieces = streamed(tokenizer, token_ids, cuts)
    assert "".join(pieces) == tokenizer.decode(token_ids)
    assert REPLACEMENT in text or all(REPLACEMENT not in piece for piece in pieces)


@pytest.mark.parametrize("kind", ["bytes", "byte-level"])
@pytest.mark.parametrize("skip", [True, False])
@given(data=st.data(), cuts=CUTS)
def test_any_tokens_give_what_decoding_them_at_once_gives(
    tokenizers: dict[str, Tokenizer], kind: str, skip: bool, data: st.DataObject, cuts: list[int]
) -> None:
    tokenizer = tokenizers[kind]
    token_ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=40))
    pieces = streamed(tokenizer, token_ids, cuts, skip=skip)
    assert "".join(pieces) == tokenizer.decode(token_ids, skip_special_tokens=skip)


def test_a_character_waits_for_its_last_byte(tokenizers: dict[str, Tokenizer]) -> None:
    detokenizer = tokenizers["byte-fallback"].detokenizer()
    party = [3 + byte for byte in "🎉".encode()]
    assert [detokenizer.feed([token]) for token in party] == ["", "", "", "🎉"]


def test_the_space_before_a_word_stays_after_a_special_token(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["byte-fallback"]
    the = tokenizer.encode("the", add_special_tokens=False)  # "▁", "the"
    assert streamed(tokenizer, [*the, 2, *the], [1, 2, 3]) == ["", "the", "", " the", ""]


def test_bytes_that_never_become_a_character_do_not_wait_for_ever(tokenizers: dict[str, Tokenizer]) -> None:
    detokenizer = tokenizers["byte-fallback"].detokenizer()
    assert isinstance(detokenizer, WindowDetokenizer)
    pieces = [detokenizer.feed([3 + 0xFF]) for _ in range(2 * PATIENCE)]
    assert "".join(pieces) == REPLACEMENT * 2 * PATIENCE


@pytest.mark.parametrize("kind", KINDS)
def test_the_bytes_of_tokens_are_the_text(tokenizers: dict[str, Tokenizer], kind: str) -> None:
    tokenizer = tokenizers[kind]
    token_ids = tokenizer.encode("the fox, 日本 🎉", add_special_tokens=False)
    assert b"".join(map(tokenizer.token_bytes, token_ids)).decode().lstrip() == "the fox, 日本 🎉"


def test_special_tokens_in_text_are_tokens(tokenizers: dict[str, Tokenizer]) -> None:
    assert tokenizers["bytes"].encode("a<|im_end|>", add_special_tokens=False) == [97, END]
    level = tokenizers["byte-level"]
    assert level.encode("<|im_end|>", add_special_tokens=False) == list(level.eos_token_ids)


def test_a_folder_that_cannot_serve_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable):
        ModelTokenizer(tmp_path / "missing")
    with pytest.raises(EngineWillNotStart, match=r"no tokenizer\.json"):
        ModelTokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(EngineWillNotStart, match="not a tokenizer"):
        ModelTokenizer(tmp_path)
