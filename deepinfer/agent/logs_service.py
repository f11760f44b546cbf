"""AgentService on this machine's loopback: an engine's log, whole, its tail, or as it grows.

Following looks at the file four times a second, and only while a follower is connected: the kernel's file events are
Linux only, and one look is a stat.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import grpc
from grpc import aio

from deepinfer.agent.engine_folders import is_placement_id
from deepinfer.agent.engine_log import log_path, offset_of_last_lines
from deepinfer.protos import agent_service as pb

_CHUNK_BYTES = 64 * 1024
_LOOK_SECONDS = 0.25
_GRACE_SECONDS = 0.5

Context = aio.ServicerContext[Any, Any]


@asynccontextmanager
async def serving_logs(engines: Path) -> AsyncIterator[str]:
    """Serve the logs below `engines` while the block runs; gives host:port."""
    server = aio.server()
    service = _LogsService(engines)
    name = pb.READ_LOGS.rpartition("/")[2]
    method = grpc.unary_stream_rpc_method_handler(
        service.read_logs,
        request_deserializer=pb.ReadLogsRequest.FromString,
        response_serializer=pb.LogChunk.SerializeToString,
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(pb.SERVICE, {name: method}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(_GRACE_SECONDS)


class _LogsService:
    def __init__(self, engines: Path) -> None:
        self._engines = engines

    async def read_logs(self, request: Any, context: Context) -> AsyncIterator[Any]:
        if not is_placement_id(request.placement):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"{request.placement!r} is no replica's name.")
        path = log_path(self._engines / request.placement, previous=request.previous)
        if not path.is_file():
            which = "an earlier run" if request.previous else "a run"
            await context.abort(
                grpc.StatusCode.NOT_FOUND,
                f"This node has no log of {which} of {request.placement}; nothing started yet?",
            )
        pieces = _followed(path, request.tail_lines) if request.follow else _as_it_is(path, request.tail_lines)
        async for data in pieces:
            yield pb.LogChunk(data=data)


async def _as_it_is(path: Path, tail_lines: int) -> AsyncIterator[bytes]:
    with _opened(path) as descriptor:
        for data in _from(descriptor, offset_of_last_lines(path, tail_lines)):
            yield data


async def _followed(path: Path, tail_lines: int) -> AsyncIterator[bytes]:
    """What is there, then what is added; goes on with the next run's file when the engine is started again."""
    offset = offset_of_last_lines(path, tail_lines)
    while True:
        with _opened(path) as descriptor:
            while True:
                last_look = not _is_still(path, descriptor)
                for data in _from(descriptor, offset):
                    offset += len(data)
                    yield data
                if last_look:
                    break
                await asyncio.sleep(_LOOK_SECONDS)
        while not _is_there(path):
            if not _is_there(path.parent):
                return  # the replica was deleted
            await asyncio.sleep(_LOOK_SECONDS)
        offset = 0


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _from(descriptor: int, offset: int) -> Iterator[bytes]:
    while data := os.pread(descriptor, _CHUNK_BYTES, offset):
        offset += len(data)
        yield data


def _is_there(path: Path) -> bool:
    return path.exists()


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
