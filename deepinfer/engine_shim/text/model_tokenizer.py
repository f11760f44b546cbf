"""A model folder's own tokenizer, by the `tokenizers` library; transformers is not needed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tokenizers import Tokenizer, decoders

from deepinfer.engine_shim.text.chat_template import ChatTemplate
from deepinfer.engine_shim.text.detokenizer import ByteDetokenizer, Detokenizer, WindowDetokenizer
from deepinfer.engine_shim.text.model_folder import ModelFolder
from deepinfer.fleet.errors import EngineWillNotStart

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")  # how SentencePiece names a byte that no piece covers


class ModelTokenizer:
    """Of tokenizer.json, with the special tokens and the chat template that lie beside it."""

    def __init__(self, folder: Path) -> None:
        model = ModelFolder.at(folder)
        self._tokenizer = _loaded(folder / "tokenizer.json")
        self._byte_level = isinstance(self._tokenizer.decoder, decoders.ByteLevel)
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = frozenset(token_id for token_id, token in added.items() if token.special)
        self._bytes: dict[int, bytes] = {}
        template = model.chat_template()
        tokens = model.special_tokens()
        self.vocab_size: int = self._tokenizer.get_vocab_size(with_added_tokens=True)
        self.chat_template = None if template is None else ChatTemplate(template, tokens)
        named = self._tokenizer.token_to_id(tokens["eos_token"]) if "eos_token" in tokens else None
        self.eos_token_ids = tuple(sorted({*model.eos_token_ids(), *(() if named is None else (named,))}))

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        text: str = self._tokenizer.decode(list(token_ids), skip_special_tokens=skip_special_tokens)
        return text

    def detokenizer(self, *, skip_special_tokens: bool = True) -> Detokenizer:
        skipped: frozenset[int] = self._special if skip_special_tokens else frozenset()
        if self._byte_level:
            return ByteDetokenizer(lambda token_id: b"" if token_id in skipped else self.token_bytes(token_id))
        return WindowDetokenizer(partial(self.decode, skip_special_tokens=False), skipped.__contains__)

    def token_bytes(self, token_id: int) -> bytes:
        known = self._bytes.get(token_id)
        if known is None:
            known = self._bytes[token_id] = self._spelled(self._tokenizer.id_to_token(token_id))
        return known

    def _spelled(self, token: str | None) -> bytes:
        if token is None:
            return b""  # ids between the vocabulary's end and the padded width of the model's output
        if self._byte_level:
            spelled = [_BYTES_OF_LETTERS.get(letter) for letter in token]
            return token.encode() if None in spelled else bytes(byte for byte in spelled if byte is not None)
        byte = _BYTE_TOKEN.fullmatch(token)
        return bytes.fromhex(byte[1]) if byte else token.replace("\N{LOWER ONE EIGHTH BLOCK}", " ").encode()


def _letters_of_bytes() -> dict[str, int]:
    """GPT-2's alphabet: printable bytes stand for themselves, the others for the letters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + at): byte for at, byte in enumerate(others)}


_BYTES_OF_LETTERS = _letters_of_bytes()


def _loaded(path: Path) -> Tokenizer:
    if not path.is_file():
        raise EngineWillNotStart(
            f"{path.parent} has no tokenizer.json, which this engine needs; convert the model's tokenizer to one "
            "(transformers' save_pretrained writes it)."
        )
    return tokenizer_of(path.read_bytes(), str(path))


def tokenizer_of(content: bytes, where: str) -> Tokenizer:
    """A tokenizer.json's, for whole texts: what it says of cutting them off and filling them up is for training."""
    try:
        tokenizer = Tokenizer.from_buffer(content)
    except Exception as error:  # the library raises nothing narrower
        raise EngineWillNotStart(f"{where} is not a tokenizer this version can read: {error}.") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
