"""What a client has of a broken stream of chat or text completion chunks, read from its events. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

DONE: Final = b"data: [DONE]\n\n"
_ONE_FOR_ALL: Final = ("id", "object", "created", "model", "system_fingerprint")
_TEXT_ONLY: Final = frozenset(("index", "text", "delta", "logprobs", "finish_reason", "stop_reason"))
_decoder = msgspec.json.Decoder(dict[str, Any])


class NotExact(Exception):
    """This stream cannot be continued so that it is what it would have been; the reason, without a full stop."""


@dataclass
class Sent:
    """`head`: the fields that are the same in all chunks."""

    head: dict[str, Any] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)  # of the first choice; no token has a part in two of them
    roles: set[int] = field(default_factory=set)  # the choices whose role was told
    other: str = ""  # what was sent that is not the first choice's text: its name
    finish: str | None = None
    usage: Mapping[str, Any] | None = None  # as it was told last
    usage_is_told: bool = False  # in a chunk of its own, the last
    done: bool = False

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def closed_texts(self) -> list[str]:
        """Those before the white space at the end, the tokens of which depend on what follows it.

        Tokenizers like GPT-2's take two line ends at the end of a text for one token, and before a word for two.
        """
        closed = list(self.texts)
        while closed and closed[-1][-1].isspace():
            closed.pop()
        return closed

    @property
    def has_begun(self) -> bool:
        """Whether the client has anything that another try could say otherwise."""
        return bool(self.texts or self.other or self.finish)


def sent_stream(events: bytes) -> Sent:
    """Raises `NotExact` for what is no such stream."""
    sent = Sent()
    for data in data_of(events):
        if data == b"[DONE]":
            sent.done = True
        else:
            _take(sent, chunk_of(data))
    return sent


def data_of(events: bytes) -> Iterator[bytes]:
    """Of whole events, each with one line of data, as OpenAI's streams have them. Comments are passed by."""
    for line in events.splitlines():
        if line.startswith(b"data:"):
            yield line[5:].strip()


def chunk_of(data: bytes) -> dict[str, Any]:
    try:
        return _decoder.decode(data)
    except msgspec.MsgspecError as error:
        raise NotExact(f"its stream is not one of completion chunks ({error})") from error


def choices_of(chunk: Mapping[str, Any]) -> list[dict[str, Any]]:
    choices = chunk.get("choices")
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise NotExact("its stream is not one of completion chunks")
    return choices


def _take(sent: Sent, chunk: dict[str, Any]) -> None:
    sent.head = {name: chunk[name] for name in _ONE_FOR_ALL if name in chunk} | sent.head
    choices = choices_of(chunk)
    if isinstance(chunk.get("usage"), dict):
        sent.usage, sent.usage_is_told = chunk["usage"], not choices
    for choice in choices:
        _take_choice(sent, choice)


def _take_choice(sent: Sent, choice: dict[str, Any]) -> None:
    delta = choice.get("delta") or {}
    if "role" in delta:
        sent.roles.add(choice.get("index", 0))
    text = delta.get("content") or choice.get("text")
    said = [name for name, value in delta.items() if value and name not in ("role", "content")]
    said += [name for name, value in choice.items() if value and name not in _TEXT_ONLY]
    if choice.get("logprobs"):
        said.append("logprobs")
    if choice.get("index", 0) != 0 and (text or choice.get("finish_reason")):
        said.append("several choices")
    if said:
        sent.other = sent.other or said[0]
    elif text:
        sent.texts.append(text)
    sent.finish = choice.get("finish_reason") or sent.finish
