"""Logprobs in OpenAI's two shapes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from deepinfer.engine_shim.text.tokenizer import Tokenizer
from deepinfer.engine_shim.token_engine import TokenLogprob

_LEAST: Final = -9999.0
"""JSON has no infinity; OpenAI and vLLM write this."""


def chat_logprobs(tokenizer: Tokenizer, entries: Iterable[TokenLogprob]) -> list[dict[str, Any]]:
    """The `content` list of a chat choice's logprobs."""
    return [
        _entry(tokenizer, entry.token_id, entry.logprob)
        | {"top_logprobs": [_entry(tokenizer, token_id, logprob) for token_id, logprob in entry.top]}
        for entry in entries
    ]


def _entry(tokenizer: Tokenizer, token_id: int, logprob: float) -> dict[str, Any]:
    spelled = tokenizer.token_bytes(token_id)
    return {"token": _text(spelled), "logprob": max(logprob, _LEAST), "bytes": list(spelled)}


def completion_logprobs(tokenizer: Tokenizer, entries: Iterable[TokenLogprob], offset: int) -> dict[str, Any]:
    """The parallel lists of a text completion; `offset` is where the first token begins."""
    tokens, values, tops, offsets = [], [], [], []
    for entry in entries:
        token = _text(tokenizer.token_bytes(entry.token_id))
        tokens.append(token)
        values.append(max(entry.logprob, _LEAST))
        tops.append({_text(tokenizer.token_bytes(each)): max(logprob, _LEAST) for each, logprob in entry.top})
        offsets.append(offset)
        offset += len(token)
    return {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets}


def _text(spelled: bytes) -> str:
    return spelled.decode("utf-8", "replace")
