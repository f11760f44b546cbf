"""Whatever comes to a stage's port, those who are served notice nothing of it, and the log tells it once."""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import pytest_asyncio
import torch

from deepinfer.engine_shim.engines.layer_shard.batch import Batch, Span
from deepinfer.engine_shim.engines.layer_shard.pipeline import handshake
from deepinfer.engine_shim.engines.layer_shard.pipeline.frames import LONGEST_MESSAGE, Header, Kind
from deepinfer.engine_shim.engines.layer_shard.pipeline.handshake import Role, Secret
from deepinfer.engine_shim.engines.layer_shard.pipeline.link import connected
from deepinfer.engine_shim.engines.layer_shard.pipeline.listener import UNPROVED_AT_ONCE
from deepinfer.engine_shim.engines.layer_shard.pipeline.messages import Passed, Peer, encoded
from deepinfer.engine_shim.engines.layer_shard.pipeline.remote_stage import RemoteStage
from deepinfer.engine_shim.token_engine import SamplingParams
from tests.contracts.layer_shard.pipelines import SECRET, Pipelined, answer_of, pipelined

pytestmark = pytest.mark.asyncio(loop_scope="module")

GREEDY = SamplingParams(max_tokens=10, temperature=0, ignore_eos=True)
PROMPTS = [[5, 6, 7], [9] * 20, [100, 3]]
WIDTH, TOKENS = 64, 256  # of the model, and of a step
HELLO, PROOF = b"dILS hello", 32
Attack = Callable[[str], None]
"""Of a stage's endpoint, in a thread."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pipeline(tiny_model: Callable[..., Path]) -> AsyncIterator[Pipelined]:
    async with pipelined(tiny_model("llama"), (2, 5)) as made:
        yield made


async def answers(pipeline: Pipelined) -> list[list[int]]:
    return await asyncio.gather(*(answer_of(pipeline.engine, prompt, GREEDY) for prompt in PROMPTS))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def whole(pipeline: Pipelined) -> list[list[int]]:
    """The undisturbed answers."""
    return await answers(pipeline)


@asynccontextmanager
async def served_meanwhile(pipeline: Pipelined, whole: list[list[int]]) -> AsyncIterator[None]:
    """Answers end after all that was done, and are as they should be."""

    over = asyncio.Event()

    async def ask() -> None:
        while not over.is_set():
            assert await answers(pipeline) == whole

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(ask())
        yield
        over.set()
    assert pipeline.lost.empty()


def greeting(role: int = Role.ROWS, version: int = 1) -> bytes:
    return HELLO + bytes((version, role)) + secrets.token_bytes(32)


def connection_to(endpoint: str) -> socket.socket:
    host, _, port = endpoint.rpartition(":")
    return socket.create_connection((host, int(port)), 5)


def is_closed(connection: socket.socket) -> bool:
    """By the other side, whatever it still had to say."""
    try:
        while connection.recv(4096):
            pass
    except TimeoutError:
        return False
    except ConnectionResetError:
        pass
    return True


def says(*pieces: bytes) -> Attack:
    """These bytes, each on a connection of its own, and nothing more."""

    def attack(endpoint: str) -> None:
        for piece in pieces:
            with connection_to(endpoint) as connection, suppress(ConnectionError):
                connection.sendall(piece)
                assert is_closed(connection)

    return attack


def hangs_up(endpoint: str) -> None:
    for cut in (0, 5, len(greeting()) - 1, len(greeting())):
        with connection_to(endpoint) as connection:
            connection.sendall(greeting()[:cut])
            connection.shutdown(socket.SHUT_WR)
            assert is_closed(connection)


def dribbles(endpoint: str) -> None:
    """A byte now and then holds no place for long."""
    began = time.monotonic()
    with connection_to(endpoint) as connection, suppress(ConnectionError):
        for byte in greeting():
            connection.sendall(bytes((byte,)))
            time.sleep(0.2)
    assert time.monotonic() - began < handshake.SECONDS + 1


def proves_wrongly(endpoint: str) -> None:
    """With no secret, a wrong one, for another stage, for another role, with what was heard of another connection."""
    heard = [b""]
    wrong = Secret(b"another secret, of 32 bytes ....")
    proofs: tuple[Callable[[bytes, bytes], bytes], ...] = (
        lambda mine, theirs: secrets.token_bytes(PROOF),
        lambda mine, theirs: wrong.proof(b"peer", "stage-2", bytes((Role.ROWS,)), mine, theirs),
        lambda mine, theirs: SECRET.proof(b"peer", "stage-1", bytes((Role.ROWS,)), mine, theirs),
        lambda mine, theirs: SECRET.proof(b"peer", "stage-2", bytes((Role.HEAD,)), mine, theirs),
        lambda mine, theirs: SECRET.proof(b"stage", "stage-2", bytes((Role.ROWS,)), mine, theirs),
        lambda mine, theirs: heard[-2],
    )
    for proof in proofs:
        mine = secrets.token_bytes(32)
        with connection_to(endpoint) as connection:
            connection.sendall(HELLO + bytes((1, Role.ROWS)) + mine)
            answer = connection.recv(32 + PROOF, socket.MSG_WAITALL)
            heard.append(SECRET.proof(b"peer", "stage-2", bytes((Role.ROWS,)), mine, answer[:32]))
            connection.sendall(proof(mine, answer[:32]))
            assert is_closed(connection)


def asks_with_a_wrong_secret(endpoint: str) -> None:
    """The stage does not know it either, so the one who asks does not even say its own proof."""
    with pytest.raises(handshake.NotAuthenticated, match="does not know this replica's secret"):
        connected(endpoint, Secret(b"another secret, of 32 bytes ...."), "stage-2", Role.HEAD)


STRANGERS: dict[str, tuple[Attack, list[str]]] = {
    "garbage": (
        says(secrets.token_bytes(200), b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" + b"x" * 44, Header(Kind.ROWS).packed()),
        ["sent what is no greeting"],
    ),
    "a truncated greeting": (hangs_up, ["hung up before it had proved who it is"]),
    "a slow greeting": (dribbles, ["took longer than 3 s to prove who it is"]),
    "another version": (says(greeting(version=9)), ["speaks version 9 and wants 2, which is not known here"]),
    "an unknown role": (says(greeting(role=77)), ["speaks version 1 and wants 77, which is not known here"]),
    "wrong proofs": (proves_wrongly, ["does not know this replica's secret"]),
    "a wrong secret": (asks_with_a_wrong_secret, []),  # as if it had hung up, which was told
}


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def check_nothing_secret(caplog: pytest.LogCaptureFixture) -> None:
    for spelled in (b"a secret of", b"another secret"):
        assert spelled.decode() not in caplog.text
        assert spelled.hex() not in caplog.text


@pytest.mark.parametrize("name", STRANGERS)
async def test_a_stranger_is_refused_and_logged_once(
    name: str, pipeline: Pipelined, whole: list[list[int]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    attack, reasons = STRANGERS[name]
    async with served_meanwhile(pipeline, whole):
        await asyncio.to_thread(attack, pipeline.stages[1].endpoint)
    told = [f"a connection from 127.0.0.1 to the port of stage stage-2 was refused: it {why}" for why in reasons]
    assert warnings(caplog) == told
    check_nothing_secret(caplog)


async def test_silent_strangers_keep_no_head_out(
    pipeline: Pipelined, whole: list[list[int]], caplog: pytest.LogCaptureFixture
) -> None:
    endpoint = pipeline.stages[1].endpoint
    async with served_meanwhile(pipeline, whole):
        silent = [await asyncio.to_thread(connection_to, endpoint) for _ in range(3 * UNPROVED_AT_ONCE)]
        link = await asyncio.to_thread(connected, endpoint, SECRET, "stage-2", Role.ROWS)
        link.close()
        for connection in silent[: 2 * UNPROVED_AT_ONCE]:
            assert await asyncio.to_thread(is_closed, connection)
        for connection in silent:
            connection.close()
    assert [line for line in warnings(caplog) if "unproved" in line] == [
        "a connection from 127.0.0.1 to the port of stage stage-2 was refused: "
        "it was silent while more than 16 were unproved"
    ]


def rows_frame(batch: Batch, rows: int, epoch: int = 1) -> bytes:
    message = encoded(Passed(batch))
    header = Header(Kind.ROWS, epoch, batch.step, rows, WIDTH, torch.float32, len(message))
    return header.packed() + message + bytes(header.payload_bytes)


def with_changed(at: int, layout: str, value: int) -> bytes:
    """The header of a row of rows, in which one field is another one."""
    header = bytearray(Header(Kind.ROWS, 1, 1, 1, WIDTH, torch.float32, 10).packed())
    struct.pack_into(layout, header, at, value)
    return bytes(header)


def with_message(message: bytes) -> bytes:
    return Header(Kind.ROWS, 1, 1, message_bytes=len(message)).packed() + message


FRAMES: dict[str, tuple[bytes, str]] = {
    "no frame": (b"x" * 64, "sent what is no frame"),
    "another version": (with_changed(4, "B", 2), "speaks version 2 and not 1"),
    "an unknown kind": (with_changed(5, "B", 99), "sent a frame of kind 99 where ROWS"),
    "a kind that is not due": (with_changed(5, "B", Kind.ORDER), "sent a frame of kind 1 where ROWS"),
    "an endless message": (with_changed(32, "<I", LONGEST_MESSAGE + 1), "announced a message of 67,108,865 bytes"),
    "too many rows": (with_changed(24, "<I", TOKENS + 1), "announced 257 rows of 64 in torch.float32; at most 256"),
    "rows of another width": (with_changed(28, "<I", WIDTH * 2), "announced 1 rows of 128 in torch.float32"),
    "rows of another dtype": (with_changed(6, "B", 1), "announced 1 rows of 64 in torch.bfloat16"),
    "rows of an unknown dtype": (with_changed(6, "B", 200), "announced 1 rows of 64 in None"),
    "another payload": (with_changed(40, "<Q", 1 << 60), "announced 1,152,921,504,606,846,976 bytes for 256 bytes"),
    "no msgpack": (with_message(b"\xc1"), "closed"),
    "a wrong type": (with_message(b"\x93\x01\x02\x03"), "Expected `array`, got `int`"),
    "text that is none": (with_message(b"\x81\xa1\xff\x01"), "closed"),
    "a number out of range": (with_message(encoded(Passed(Batch(1 << 41)))), "Expected `int` <= 1099511627776"),
}


@pytest.mark.parametrize("name", FRAMES)
async def test_a_frame_that_cannot_be_ends_its_connection(
    name: str, pipeline: Pipelined, whole: list[list[int]], caplog: pytest.LogCaptureFixture
) -> None:
    """From someone who knows the secret: a wrong version, a broken machine."""
    frame, why = FRAMES[name]

    def attack() -> None:
        with connection_to(pipeline.stages[1].endpoint) as connection:
            handshake.ask_in(connection, SECRET, "stage-2", Role.ROWS)
            connection.settimeout(5)
            connection.sendall(frame)
            assert is_closed(connection)

    async with served_meanwhile(pipeline, whole):
        await asyncio.to_thread(attack)
    (told,) = warnings(caplog)
    assert told.startswith("the stage before of stage stage-2 ")
    assert why in told
    check_nothing_secret(caplog)


def span(start: int, count: int, capacity: int, sequence: int = 0) -> Span:
    return Span(sequence, start, count, capacity, chooses=True)


STRANGE_STEP = 1 << 39
BATCHES: dict[str, tuple[bytes, str]] = {
    "an older epoch": (rows_frame(Batch(STRANGE_STEP, (span(0, 1, 16),)), 1, epoch=0), ""),
    "an epoch to come": (rows_frame(Batch(STRANGE_STEP, (span(0, 1, 16),)), 1, epoch=2), ""),
    "beyond its memory": (rows_frame(Batch(STRANGE_STEP + 1, (span(16, 1, 16),)), 1), "tokens 16 to 17 of a sequence"),
    "more memory than there is": (rows_frame(Batch(STRANGE_STEP + 2, (span(0, 1, 1 << 40),)), 1), "tokens 0 to 1 of a"),
    "all memory twice": (
        rows_frame(Batch(STRANGE_STEP + 3, (span(0, 1, 4096, 1 << 30), span(0, 1, 4096, 1 << 31))), 2),
        "memory for 8192 tokens, of 4096",
    ),
    "fewer rows than tokens": (rows_frame(Batch(STRANGE_STEP + 4, (span(0, 9, 16),)), 1), "1 rows came for 9 tokens"),
    "a sequence nobody opened": (rows_frame(Batch(STRANGE_STEP + 5, (span(0, 1, 16, 1 << 30),)), 1), "KeyError"),
}


@pytest.mark.parametrize("name", BATCHES)
async def test_a_batch_that_cannot_be_is_not_computed(
    name: str, pipeline: Pipelined, whole: list[list[int]], caplog: pytest.LogCaptureFixture
) -> None:
    frame, why = BATCHES[name]

    def attack() -> None:
        with connection_to(pipeline.stages[1].endpoint) as connection:
            handshake.ask_in(connection, SECRET, "stage-2", Role.ROWS)
            connection.sendall(frame)
            time.sleep(0.1)

    async with served_meanwhile(pipeline, whole):
        await asyncio.to_thread(attack)
    assert len(warnings(caplog)) == bool(why)
    assert why in caplog.text
    check_nothing_secret(caplog)


async def test_a_head_that_is_replaced_is_not_heard_any_more(pipeline: Pipelined) -> None:
    """Last here: whoever knows the secret may be the head."""
    stage = pipeline.stages[1]
    peer = Peer(stage.name, stage.endpoint)
    other = await asyncio.to_thread(RemoteStage, peer, SECRET, lambda result: None, lambda why: None)
    assert (await asyncio.wait_for(pipeline.lost.get(), 3)).stage == "stage-2"
    other.close()
