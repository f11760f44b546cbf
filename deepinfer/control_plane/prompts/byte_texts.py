"""The tokens of texts for an engine whose tokens are bytes."""

from __future__ import annotations

from deepinfer.control_plane.prompts.texts import Allowance
from deepinfer.engine_shim.kv_chain import token_bytes
from deepinfer.engine_shim.text.byte_tokenizer import SPECIAL, split_at_special

_TOKENS = {text: token_bytes([token]) for text, token in SPECIAL.items()}


class ByteTexts:
    """Quick enough to remember nothing."""

    grain = "word"
    reason = ""

    def tokens(self, text: str, allowance: Allowance) -> bytes:
        return self.whole(text)

    def whole(self, text: str) -> bytes:
        return b"".join(_TOKENS.get(part) or _wide(part) for part in split_at_special(text))


def _wide(text: str) -> bytes:
    """Each byte in 32 bits, as kv_chain's token_bytes has it, which would take ten times as long."""
    return text.encode("utf-8", "replace").decode("latin-1").encode("utf-32-le")
