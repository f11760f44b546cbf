"""An engine's log over gRPC, as the management API reads it."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio

from deepinfer.agent.engine_log import log_path, offset_of_last_lines, start_new_log
from deepinfer.agent.logs_service import serving_logs
from deepinfer.protos import agent_service as pb

ID = "chat-aaaaa-0"


class Reader:
    def __init__(self, channel: aio.Channel) -> None:
        self._call = channel.unary_stream(pb.READ_LOGS, pb.ReadLogsRequest.SerializeToString, pb.LogChunk.FromString)

    def call(self, placement: str = ID, **request: Any) -> Any:
        return self._call(pb.ReadLogsRequest(placement=placement, **request))

    async def all(self, placement: str = ID, **request: Any) -> str:
        return b"".join([chunk.data async for chunk in self.call(placement, **request)]).decode()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / ID
    folder.mkdir()
    return folder


@pytest.fixture
async def reader(tmp_path: Path) -> AsyncIterator[Reader]:
    async with serving_logs(tmp_path) as endpoint, aio.insecure_channel(endpoint) as channel:
        yield Reader(channel)


def append(folder: Path, text: str) -> None:
    with log_path(folder).open("a") as log:
        log.write(text)


async def read_until(call: Any, text: str) -> str:
    found = ""
    while text not in found:
        found += (await call.read()).data.decode()
    return found


@pytest.mark.parametrize(
    ("content", "lines", "tail"),
    [
        ("a\nb\nc\n", 2, "b\nc\n"),
        ("a\nb\nc", 2, "b\nc"),
        ("a\n", 5, "a\n"),
        ("", 3, ""),
        ("a\nb\n", 0, "a\nb\n"),
        ("\n\n\n", 2, "\n\n"),
        ("x" * 70_000 + "\n" + "y" * 70_000 + "\n", 1, "y" * 70_000 + "\n"),  # longer than a look from the end
    ],
)
async def test_the_last_lines(folder: Path, reader: Reader, content: str, lines: int, tail: str) -> None:
    append(folder, content)
    assert log_path(folder).read_bytes()[offset_of_last_lines(log_path(folder), lines) :].decode() == tail
    assert await reader.all(tail_lines=lines) == tail


async def test_a_follower_sees_what_is_added_and_the_next_run(folder: Path, reader: Reader) -> None:
    append(folder, "one\ntwo\n")
    call = reader.call(tail_lines=1, follow=True)
    assert await read_until(call, "two\n") == "two\n"
    append(folder, "three\n")
    assert await read_until(call, "three\n") == "three\n"
    append(folder, "last words\n")
    start_new_log(folder)
    append(folder, "a new run\n")
    assert await read_until(call, "a new run\n") == "last words\na new run\n"
    assert await reader.all(previous=True) == "one\ntwo\nthree\nlast words\n"


async def test_following_ends_when_the_replica_is_deleted(folder: Path, reader: Reader) -> None:
    append(folder, "one\n")
    call = reader.call(follow=True)
    await read_until(call, "one\n")
    shutil.rmtree(folder)
    assert await call.code() is grpc.StatusCode.OK


@pytest.mark.parametrize("placement", ["../chat-aaaaa-0", "/etc", "", ".", "a/b", "a\0b"])
async def test_nothing_but_a_replicas_folder_can_be_read(folder: Path, reader: Reader, placement: str) -> None:
    append(folder, "secret\n")
    with pytest.raises(aio.AioRpcError) as refusal:
        await reader.all(placement)
    assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_log_that_is_not_there_is_told(folder: Path, reader: Reader) -> None:
    append(folder, "one\n")
    for placement, previous in (("other-aaaaa-0", False), (ID, True)):
        with pytest.raises(aio.AioRpcError, match="no log of") as refusal:
            await reader.all(placement, previous=previous)
        assert refusal.value.code() is grpc.StatusCode.NOT_FOUND
