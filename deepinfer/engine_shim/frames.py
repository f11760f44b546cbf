"""What travels on a Call stream, as values. One stream carries many requests; `stream` tells them apart.

Tuples, not dataclasses: one of these is made for every token of every request.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeVar

FRAME_BYTES: Final = 16 << 20
"""The largest piece of a body. A message holds little more than two, so that none is larger than a receiver takes."""

Headers = tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True, slots=True)
class EngineCall:
    """One HTTP request for an engine. Header names are lower case."""

    method: str
    path: str
    query: bytes = b""
    headers: Headers = ()
    body: bytes = b""


class Open(NamedTuple):
    """A new request; `whole` when its body is complete."""

    stream: int
    call: EngineCall
    whole: bool


class MoreBody(NamedTuple):
    """A further piece of a request's body; the last one may be empty."""

    stream: int
    data: bytes
    last: bool


class Cancel(NamedTuple):
    """No answer is wanted any more."""

    stream: int


CallFrame = Open | MoreBody | Cancel


class Head(NamedTuple):
    """The answer's status and headers; comes before its body."""

    stream: int
    status: int
    headers: Headers


class Body(NamedTuple):
    """A piece of the answer's body."""

    stream: int
    data: bytes


class End(NamedTuple):
    """The answer is whole."""

    stream: int


class Failure(NamedTuple):
    """The engine could not go on; nothing follows."""

    stream: int
    message: str


AnswerFrame = Head | Body | End | Failure


Frame = TypeVar("Frame", bound=CallFrame | AnswerFrame)


def cut(body: bytes) -> list[bytes]:
    """A body in pieces that fit into frames."""
    return [body[at : at + FRAME_BYTES] for at in range(0, len(body), FRAME_BYTES)]


def in_messages(frames: Sequence[Frame]) -> Iterator[list[Frame]]:
    """The frames in their order, packed into messages: nearly always one."""
    message: list[Frame] = []
    size = 0
    for frame in frames:
        message.append(frame)
        size += _bulk(frame)
        if size >= FRAME_BYTES:
            yield message
            message, size = [], 0
    if message:
        yield message


def _bulk(frame: CallFrame | AnswerFrame) -> int:
    match frame:
        case Body(_, data):
            return len(data)
        case MoreBody(_, data, _):
            return len(data)
        case Open(_, call, _):
            return len(call.body)
    return 0
