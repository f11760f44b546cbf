"""A tokenizer that needs no files: a token a byte, and three special ones. For simulated engines."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from deepinfer.engine_shim.text.chat_template import ChatTemplate
from deepinfer.engine_shim.text.detokenizer import ByteDetokenizer

BOS: Final = 256
START: Final = 257
END: Final = 258
SPECIAL: Final = {"<|endoftext|>": BOS, "<|im_start|>": START, "<|im_end|>": END}
split_at_special: Final = re.compile("(" + "|".join(map(re.escape, SPECIAL)) + ")").split
_TEMPLATE: Final = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class ByteTokenizer:
    """Bytes are tokens 0 to 255."""

    vocab_size = 259
    eos_token_ids: tuple[int, ...] = (END,)

    def __init__(self) -> None:
        self.chat_template: ChatTemplate | None = ChatTemplate(_TEMPLATE, {"eos_token": "<|im_end|>"})
        self._texts = {token_id: text.encode() for text, token_id in SPECIAL.items()}

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        tokens: list[int] = []  # add_special_tokens adds none here: there is no BOS this engine wants
        for part in split_at_special(text):
            tokens += [SPECIAL[part]] if part in SPECIAL else part.encode("utf-8", "replace")
        return tokens

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        detokenizer = self.detokenizer(skip_special_tokens=skip_special_tokens)
        return detokenizer.feed(token_ids) + detokenizer.flush()

    def detokenizer(self, *, skip_special_tokens: bool = True) -> ByteDetokenizer:
        return ByteDetokenizer(_plain_bytes if skip_special_tokens else self.token_bytes)

    def token_bytes(self, token_id: int) -> bytes:
        return self._texts.get(token_id) or _plain_bytes(token_id)


def _plain_bytes(token_id: int) -> bytes:
    return bytes((token_id,)) if token_id < 256 else b""
