"""What the shim needs of a tokenizer: text to tokens and back, one token's text, the chat template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from deepinfer.engine_shim.text.chat_template import ChatTemplate
from deepinfer.engine_shim.text.detokenizer import Detokenizer


class Tokenizer(Protocol):
    """Two kinds: a model folder's (`model_tokenizer.py`) and one of plain bytes that needs no files."""

    vocab_size: int
    eos_token_ids: tuple[int, ...]
    chat_template: ChatTemplate | None

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Special tokens that stand in the text are recognized; `add_special_tokens` adds those around it (BOS)."""
        ...

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str: ...

    def detokenizer(self, *, skip_special_tokens: bool = True) -> Detokenizer:
        """For one sequence."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """What one token stands for, also a special one."""
        ...
