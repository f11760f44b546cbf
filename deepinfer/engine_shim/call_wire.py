"""Calls on the wire: frames to bytes and back.

A frame is its kind (1 byte), its request's number (4 bytes), the length of what follows (4 bytes), and that. Integers
are big-endian; the heads of requests and answers are protobuf, all else is plain bytes. A caller says `hello` first.

Not gRPC, because of what that costs: 0.5 ms of CPU a message for both sides together, where a socket's bytes take a
fifth of it, and there is one message for every step of an engine.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, Final

from google.protobuf.message import DecodeError

from deepinfer.engine_shim.frames import (
    FRAME_BYTES,
    AnswerFrame,
    Body,
    CallFrame,
    Cancel,
    Credit,
    End,
    EngineCall,
    Failure,
    Head,
    Headers,
    MoreBody,
    Open,
)
from deepinfer.fleet.errors import EngineFailed
from deepinfer.protos import engine_service as pb

LARGEST_FRAME: Final = 4 * FRAME_BYTES
"""What either side takes: a piece of a body, or a head with very many headers."""
HELLO: Final = 0
BODY: Final = 3
_OPEN: Final = 1
_HEAD: Final = 2
_END: Final = 4
_CREDIT: Final = 5
_CANCEL: Final = 6
_FAILURE: Final = 7
_START: Final = struct.Struct(">BII")
_COUNT: Final = struct.Struct(">I")

start = _START.pack
"""(kind, stream, length) of a frame, for those who send its content apart."""


class NotUnderstood(EngineFailed):
    """What came on a connection for calls is not what deepinfer sends."""


class FrameReader:
    """Frames as (kind, stream, content) out of bytes that come in pieces of any size."""

    def __init__(self) -> None:
        self._rest = b""

    def read(self, data: bytes) -> Iterator[tuple[int, int, bytes]]:
        """Those that are whole now. `NotUnderstood` for one that is too large; nothing more can be read then."""
        if self._rest:
            data = self._rest + data
        at, length = 0, len(data)
        while length - at >= _START.size:
            kind, stream, size = _START.unpack_from(data, at)
            end = at + _START.size + size
            if size > LARGEST_FRAME:
                raise NotUnderstood(f"A frame of {size} bytes came; {LARGEST_FRAME} is the most.")
            if end > length:
                break
            yield kind, stream, data[end - size : end]
            at = end
        self._rest = data[at:]


def hello(key: bytes) -> bytes:
    """Proves that the caller means the engine it reached: a port may be another one's by now."""
    return _frame(HELLO, 0, key)


def call_to_bytes(frame: CallFrame) -> bytes:
    match frame:
        case Open(stream, call, whole):
            opening = pb.CallOpen(method=call.method, path=call.path, query=call.query, body=call.body, end=whole)
            return _frame(_OPEN, stream, _with_headers(opening, call.headers))
        case MoreBody(stream, data, last):
            return _frame(BODY, stream, data) + (_frame(_END, stream) if last else b"")
        case Credit(stream, count):
            return _frame(_CREDIT, stream, _COUNT.pack(count))
        case Cancel(stream):
            return _frame(_CANCEL, stream)


def call_from_bytes(kind: int, stream: int, data: bytes) -> CallFrame:
    """Raises `NotUnderstood`, as does the next."""
    if kind == _OPEN:
        m = _parsed(pb.CallOpen, data)
        return Open(stream, EngineCall(m.method, m.path, m.query, _headers(m.headers), m.body), m.end)
    if kind == BODY:
        return MoreBody(stream, data, last=False)
    if kind == _END:
        return MoreBody(stream, b"", last=True)
    if kind == _CREDIT and len(data) == _COUNT.size:
        return Credit(stream, *_COUNT.unpack(data))
    if kind == _CANCEL:
        return Cancel(stream)
    raise NotUnderstood(f"A caller sent a frame that this version does not know (kind {kind}).")


def answer_to_bytes(frame: AnswerFrame) -> bytes:
    match frame:
        case Body(stream, data):
            return _frame(BODY, stream, data)
        case Head(stream, status, headers):
            return _frame(_HEAD, stream, _with_headers(pb.AnswerHead(status=status), headers))
        case End(stream):
            return _frame(_END, stream)
        case Failure(stream, message):
            return _frame(_FAILURE, stream, message.encode()[:FRAME_BYTES])


def answer_from_bytes(kind: int, stream: int, data: bytes) -> AnswerFrame:
    if kind == BODY:
        return Body(stream, data)
    if kind == _HEAD:
        m = _parsed(pb.AnswerHead, data)
        return Head(stream, m.status, _headers(m.headers))
    if kind == _END:
        return End(stream)
    if kind == _FAILURE:
        return Failure(stream, data.decode(errors="replace"))
    raise NotUnderstood(f"The engine's shim sent a frame that this version does not know (kind {kind}).")


def _frame(kind: int, stream: int, content: bytes = b"") -> bytes:
    return _START.pack(kind, stream, len(content)) + content


def _with_headers(message: Any, headers: Headers) -> bytes:
    for name, value in headers:
        message.headers.add(name=name, value=value)
    return bytes(message.SerializeToString())


def _headers(source: Any) -> Headers:
    return tuple((h.name, h.value) for h in source)


def _parsed(kind: Any, data: bytes) -> Any:
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise NotUnderstood(f"A head came that cannot be read: {error}.") from error
