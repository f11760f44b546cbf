"""What an answer says of itself: how many tokens it took and made, and why it ended. Pure.

Of one that came in pieces only the last bytes are looked at, once, and nothing is decoded. Text of a model or a client
cannot be taken for it: it stands in JSON strings, where every quote has a backslash before it.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

import msgspec
from msgspec import Struct

END_BYTES = 64 << 10
"""What stands further from the end than about this is not found."""
_USAGE_BYTES = 1024
_USUAL = re.compile(
    rb'\s*:\s*\{\s*"prompt_tokens"\s*:\s*(\d{1,12})\s*,[^{}]{0,64}?"completion_tokens"\s*:\s*(\d{1,12})'
)
_TOKENS = re.compile(rb'"(prompt|input|completion|output)_tokens"\s*:\s*(\d{1,12})')
_CACHED = re.compile(rb'"cached_tokens"\s*:\s*(\d{1,12})')
_REASON = re.compile(rb'"\s*:\s*"(\w{1,32})"')
_FINISHED = {"length": "length", "max_tokens": "length", "content_filter": "other", "refusal": "other"}


class Tokens(NamedTuple):
    """`cached`: of the prompt, those that were not computed again; -1: not said."""

    prompt: int
    completion: int
    cached: int = -1


class Told(Struct, frozen=True):
    """`finished` in vLLM's words."""

    tokens: Tokens
    finished: str


class _Details(Struct):
    cached_tokens: int | None = None


class _Usage(Struct):
    """OpenAI's names, and those of its Responses and of Anthropic."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    prompt_tokens_details: _Details | None = None
    input_tokens_details: _Details | None = None


class _Choice(Struct):
    finish_reason: str | None = None


class _Whole(Struct):
    usage: _Usage
    choices: list[_Choice] = []
    stop_reason: str | None = None


_decode: Final = msgspec.json.Decoder(_Whole).decode
_decode_any: Final = msgspec.json.Decoder(msgspec.Raw).decode


def told_by(whole: bytes) -> Told | None:
    """An answer that is JSON; None if it is of another form. Raises `msgspec.DecodeError` for what is no JSON."""
    try:
        answer = _decode(whole)
    except (msgspec.ValidationError, UnicodeDecodeError):
        _decode_any(whole)  # what comes after the value of another form may be no JSON
        return None
    reason, usage = answer.stop_reason, answer.usage
    for choice in answer.choices:
        reason = choice.finish_reason or reason
    details = usage.prompt_tokens_details or usage.input_tokens_details
    cached = -1 if details is None or details.cached_tokens is None else details.cached_tokens
    tokens = Tokens(usage.prompt_tokens or usage.input_tokens, usage.completion_tokens or usage.output_tokens, cached)
    return Told(tokens, "stop" if reason is None else _FINISHED.get(reason, "stop"))


def end_of(earlier: bytes, before: bytes, last: bytes) -> bytes:
    """Of an answer's last three pieces; in a stream these are why it ended, its usage, and [DONE]."""
    return last if len(last) > END_BYTES else b"".join((earlier, before, last))[-END_BYTES:]


def tokens_told(end: bytes) -> Tokens | None:
    """By the last "usage": OpenAI's names or Anthropic's."""
    at = end.rfind(b'"usage"')
    if at < 0:
        return None
    usual = _USUAL.match(end, at + len(b'"usage"'))
    cached = _CACHED.search(end, at, at + _USAGE_BYTES)
    held = int(cached[1]) if cached is not None else -1
    if usual is not None:
        return Tokens(int(usual[1]), int(usual[2]), held)
    told: dict[bytes, int] = {}
    for name, number in _TOKENS.findall(end, at, at + _USAGE_BYTES):
        told.setdefault(name, int(number))
    if not told:
        return None
    prompt = told.get(b"prompt", told.get(b"input", 0))
    return Tokens(prompt, told.get(b"completion", told.get(b"output", 0)), held)


def finished_reason(end: bytes) -> str:
    """In vLLM's words: "stop" also for a tool call, and for what knows no reason, as an embedding."""
    for name in (b'"finish_reason', b'"stop_reason'):
        at = end.rfind(name)
        while at >= 0:
            found = _REASON.match(end, at + len(name))
            if found is not None:
                return _FINISHED.get(found[1].decode(), "stop")
            at = end.rfind(name, 0, at)  # "null": of a choice that goes on
    return "stop"
