"""Another engine's stream told as the rest of the one that broke: its ids, its kind of chunks, its usage. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from deepinfer.control_plane.gateway.continuation import CHAT, Wanted
from deepinfer.control_plane.gateway.sent_stream import DONE, NotExact, Sent, choices_of, chunk_of, data_of

Chunk = dict[str, Any]
Change = Callable[[Chunk], Chunk | None]
"""What the client gets for a chunk; None: nothing."""


class Retelling:
    """`is_over` when the stream has come to its end."""

    def __init__(self, sent: Sent, change: Change) -> None:
        self.is_over = False
        self._head = sent.head
        self._change = change

    def of(self, events: bytes) -> bytes:
        """Whole events in, whole events out. `NotExact` for what is no stream of chunks."""
        told = []
        for data in data_of(events):
            if data == b"[DONE]":
                self.is_over = True
                told.append(DONE)
            elif (chunk := self._change(chunk_of(data))) is not None:
                told.append(_event(self._head | chunk | self._head))
        return b"".join(told)


def told_again(sent: Sent) -> Change:
    """For a request that is made once more: the client has the roles already."""

    def change(chunk: Chunk) -> Chunk | None:
        choices = choices_of(chunk)
        kept = [choice for choice in map(_without_role(sent), choices) if choice is not None]
        return None if choices and not kept else chunk | {"choices": kept}

    return change


class Rest:
    """Chunks of the text completion that makes the rest. `sent` tokens were made before; it begins with text that the
    client has, `again`."""

    def __init__(self, wanted: Wanted, already: Sent, prompt: int, sent: int, again: str = "") -> None:
        self._is_chat = wanted.path == CHAT
        self._tells_usage = wanted.wants_usage or already.usage is not None  # an engine may be set to tell it to all
        self._tells_always = wanted.wants_usage_always or (already.usage is not None and not already.usage_is_told)
        self._head, self._prompt, self._sent = already.head, prompt, sent
        self._again = again

    def change(self, chunk: Chunk) -> Chunk | None:
        choices, usage = choices_of(chunk), chunk.get("usage")
        if self._again:
            choices = [self._new_part(choice) for choice in choices]
            if self._again:
                return None
        told = {name: value for name, value in chunk.items() if name != "usage"} | {"choices": self._choices(choices)}
        if isinstance(usage, dict) and (self._tells_always or (self._tells_usage and not choices)):
            return told | {"usage": self._usage(usage)}
        if not any(choice.get("text") or choice.get("finish_reason") for choice in choices):
            return None
        return told | {"usage": None} if "usage" in chunk and self._tells_usage else told

    def ending(self, finish: str | None, made: int) -> bytes:
        """What is missing when no token is: `finish` if that has not been told, the usage if it is told."""
        events = []
        if finish is not None:
            choices = self._choices([{"index": 0, "text": "", "finish_reason": finish}])
            events.append(_event(self._head | {"choices": choices}))
        if self._tells_usage:
            events.append(_event(self._head | {"choices": [], "usage": self._usage({"completion_tokens": made})}))
        return b"".join(events) + DONE

    def _new_part(self, choice: Chunk) -> Chunk:
        text = choice.get("text") or ""
        known = min(len(text), len(self._again))
        ends_early = choice.get("finish_reason") and known < len(self._again)
        if text[:known] != self._again[:known] or ends_early:
            raise NotExact("the other replica said its last words otherwise")
        self._again = self._again[known:]
        return choice | {"text": text[known:]}

    def _choices(self, choices: list[Chunk]) -> list[Chunk]:
        return [_chat_choice(choice) for choice in choices] if self._is_chat else choices

    def _usage(self, usage: Mapping[str, Any]) -> Chunk:
        made = usage.get("completion_tokens")
        if not isinstance(made, int):
            raise NotExact("the other engine tells no usage")
        completion = self._sent + made
        counts = {"prompt_tokens": self._prompt, "completion_tokens": completion}
        told = {**usage, **counts, "total_tokens": self._prompt + completion}
        details = told.get("prompt_tokens_details")
        if isinstance(details, dict) and isinstance(cached := details.get("cached_tokens"), int):
            told["prompt_tokens_details"] = details | {"cached_tokens": min(cached, self._prompt)}
        return told


def _chat_choice(choice: Chunk) -> Chunk:
    text = choice.get("text")
    delta = {"content": text} if text else {}
    rest = {name: value for name, value in choice.items() if name not in ("index", "text")}
    return {"index": 0, "delta": delta, **rest}


def _without_role(sent: Sent) -> Change:
    def change(choice: Chunk) -> Chunk | None:
        delta = choice.get("delta")
        if not isinstance(delta, dict) or "role" not in delta or choice.get("index", 0) not in sent.roles:
            return choice
        delta = {name: value for name, value in delta.items() if name != "role"}
        says_nothing = not any(delta.values()) and not choice.get("finish_reason")
        return None if says_nothing else choice | {"delta": delta}

    return change


def _event(chunk: Chunk) -> bytes:
    return b"data: " + msgspec.json.encode(chunk) + b"\n\n"
