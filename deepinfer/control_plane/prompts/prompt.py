"""What of a request makes its prompt."""

from __future__ import annotations

from dataclasses import dataclass

from deepinfer.engine_shim.text.chat_template import ChatPrompt


@dataclass(frozen=True, slots=True)
class Prompt:
    """A chat, a text, or tokens (kv_chain.py's bytes)."""

    content: ChatPrompt | str | bytes
    size: int  # about so many characters of the request go into it
    add_special_tokens: bool = False
    cache_salt: str | None = None
