"""Whatever bytes come: a frame's header is refused or within its limits, and nobody gets in without the secret."""

from __future__ import annotations

import secrets
import socket
import threading
from contextlib import suppress

import msgspec
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from deepinfer.engine_shim.engines.layer_shard.pipeline import handshake, messages
from deepinfer.engine_shim.engines.layer_shard.pipeline.frames import (
    DTYPES,
    HEADER_BYTES,
    LONGEST_MESSAGE,
    FrameLimits,
    FrameRefused,
    Header,
    Kind,
    parsed,
)
from deepinfer.engine_shim.engines.layer_shard.pipeline.handshake import NotAuthenticated, Role, Secret, ask_in, let_in

LIMITS = FrameLimits(Kind.ROWS, rows=256, width=64, dtype=torch.bfloat16)
GOOD = Header(Kind.ROWS, 3, 9, 7, 64, torch.bfloat16, 21)
U64, U32 = st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1)
HEADERS = st.builds(
    Header, st.sampled_from(Kind), U64, U64, U32, U32, st.sampled_from(list(DTYPES.values())), st.integers(0, 1 << 27)
).filter(lambda header: header.payload_bytes < 2**64)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A good header in which some bytes are others."""
    header = bytearray(GOOD.packed())
    for at, value in draw(st.dictionaries(st.integers(0, HEADER_BYTES - 1), st.integers(0, 255), max_size=4)).items():
        header[at] = value
    return bytes(header)


@settings(deadline=None)
@given(st.binary(min_size=HEADER_BYTES, max_size=HEADER_BYTES) | damaged() | HEADERS.map(Header.packed))
def test_any_64_bytes_are_refused_or_a_header_within_its_limits(first: bytes) -> None:
    try:
        header = parsed(first, LIMITS)
    except FrameRefused as refused:
        assert str(refused)
        return
    assert header.kind is Kind.ROWS
    assert header.rows <= LIMITS.rows
    assert header.payload_bytes <= 256 * 64 * 2
    assert header.message_bytes <= LONGEST_MESSAGE
    if header.rows:
        assert (header.width, header.dtype) == (64, torch.bfloat16)


@settings(deadline=None)
@given(HEADERS)
@example(Header(Kind.ORDER, message_bytes=LONGEST_MESSAGE))
@example(Header(Kind.ROWS))
def test_what_is_packed_is_parsed_to_the_same(header: Header) -> None:
    limits = FrameLimits(header.kind, header.rows, header.width, header.dtype)
    if header.message_bytes > LONGEST_MESSAGE:
        with pytest.raises(FrameRefused, match="announced a message"):
            parsed(header.packed(), limits)
    else:
        told = (
            header if header.rows else Header(header.kind, header.epoch, header.step, 0, 0, None, header.message_bytes)
        )
        assert parsed(header.packed(), limits) == told


@settings(deadline=None)
@given(st.binary(max_size=60), st.sampled_from([messages.orders, messages.reports, messages.passed]))
@example(b"\x81\xa1\xff\x01", messages.orders)
@example(b"\x91" * 5000, messages.passed)
def test_any_message_is_refused_with_an_error_that_readers_expect(
    message: bytes, decoder: msgspec.msgpack.Decoder[object]
) -> None:
    with suppress(msgspec.DecodeError, UnicodeDecodeError):
        decoder.decode(message)


def let_in_by(hello: bytes, rest: bytes) -> None:
    """What comes of these bytes, and no more of them. Raises what `let_in` does."""
    asking, listening = socket.socketpair()
    with asking, listening:
        asking.sendall(hello + rest)
        asking.shutdown(socket.SHUT_WR)
        let_in(listening, Secret(secrets.token_bytes(32)), "stage-1")


HELLO = b"dILS hello\x01"


@settings(deadline=None)
@given(
    st.binary(max_size=100)
    | st.builds(lambda role, random: HELLO + bytes((role,)) + random, st.sampled_from(Role), st.binary(max_size=40)),
    st.binary(max_size=64),
)
@example(HELLO + b"\x01" + bytes(32), bytes(32))
def test_no_bytes_get_in_without_the_secret(hello: bytes, rest: bytes) -> None:
    with pytest.raises(NotAuthenticated) as raised:
        let_in_by(hello, rest)
    assert str(raised.value).isprintable()


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_pass_for_a_stage(answer: bytes) -> None:
    asking, listening = socket.socketpair()
    with asking, listening:
        listening.sendall(answer)
        listening.shutdown(socket.SHUT_WR)
        with pytest.raises(NotAuthenticated):
            ask_in(asking, Secret(secrets.token_bytes(32)), "stage-1", Role.HEAD)


@settings(deadline=None, max_examples=30)
@given(
    st.sampled_from(Role),
    st.tuples(st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32)),
    st.tuples(st.text(min_size=1, max_size=20), st.text(min_size=1, max_size=20)),
    st.tuples(st.booleans(), st.booleans()),
)
def test_only_the_same_secret_and_the_same_stage_open(
    role: Role, keys: tuple[bytes, bytes], stages: tuple[str, str], same: tuple[bool, bool]
) -> None:
    key, stage = (keys[0] if same[0] else keys[1]), (stages[0] if same[1] else stages[1])
    asking, listening = socket.socketpair()
    came: list[Role | OSError] = []

    def listen() -> None:
        try:
            came.append(let_in(listening, Secret(key), stage))
        except OSError as error:
            came.append(error)
            listening.close()

    thread = threading.Thread(target=listen)
    thread.start()
    with asking, listening:
        if (key, stage) == (keys[0], stages[0]):
            ask_in(asking, Secret(keys[0]), stages[0], role)
            thread.join()
            assert came == [role]
            return
        with pytest.raises(NotAuthenticated):
            ask_in(asking, Secret(keys[0]), stages[0], role)
        asking.close()
        thread.join()
        assert isinstance(came[0], NotAuthenticated)


def test_a_secret_is_never_shown() -> None:
    key = b"0123456789abcdef"
    assert "0123" not in f"{Secret(key)!r} {Secret(key)}"
    with pytest.raises(ValueError, match="at least 16 bytes"):
        Secret(key[:15])


def test_a_peer_that_falls_silent_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshake, "SECONDS", 0.1)
    asking, listening = socket.socketpair()
    with asking, listening, pytest.raises(NotAuthenticated, match=r"took longer than 0.1 s"):
        let_in(listening, Secret(b"0123456789abcdef"), "stage-1")
