"""What travels between a gateway and an engine, as values. One connection carries many requests; `stream` tells them
apart.

Tuples and structs, not dataclasses: one of these is made for every request, or every token of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from msgspec import Struct

FRAME_BYTES: Final = 256 << 10
"""The largest piece of a body, so that a large one lets the others of its connection through."""
WINDOW_BYTES: Final = 512 << 10
"""How much of an answer's body may be on its way. Its reader grants more as it reads; one piece may pass the window."""
TOLERATED_BYTES: Final = 1 << 20
"""What a reader takes at most without having granted it: the window of shims of earlier versions."""

Headers = tuple[tuple[bytes, bytes], ...]
HOP_BY_HOP: Final = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade", b"expect")
)
"""Headers that are about one HTTP connection, so no part of a call or an answer that goes further."""


class EngineCall(Struct, frozen=True, gc=False):
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


class Credit(NamedTuple):
    """So many more bytes of the answer's body may come."""

    stream: int
    more: int


class Cancel(NamedTuple):
    """No answer is wanted any more."""

    stream: int


CallFrame = Open | MoreBody | Credit | Cancel


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


def cut(body: bytes) -> Sequence[bytes]:
    """A body in pieces that fit into frames."""
    if len(body) <= FRAME_BYTES:
        return (body,) if body else ()
    return [body[at : at + FRAME_BYTES] for at in range(0, len(body), FRAME_BYTES)]
