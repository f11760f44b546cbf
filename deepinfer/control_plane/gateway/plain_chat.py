"""A chat of words alone, as most are: read by its types, there is nothing in it that body_rules.py would look at.

Whatever has another field, or a value of another type, is no plain chat, be it right or wrong.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from deepinfer.control_plane.gateway.body_rules import MOST_CHOICES

_Choices = Annotated[int, Meta(le=MOST_CHOICES)]


class _Message(Struct, forbid_unknown_fields=True):
    role: str
    content: str
    name: str = ""


class _StreamOptions(Struct, forbid_unknown_fields=True):
    include_usage: bool | None = None


class PlainChat(Struct, forbid_unknown_fields=True):
    """Names and meanings are OpenAI's and vLLM's."""

    model: str
    messages: list[_Message]
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    n: _Choices | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    ignore_eos: bool | None = None
    user: str | None = None
    prompt_cache_key: str | None = None
    stream_options: _StreamOptions | None = None


_decode: Final = msgspec.json.Decoder(PlainChat).decode


def plain_chat(body: bytes) -> PlainChat | None:
    """None for anything else, also for what is no JSON."""
    try:
        return _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
