"""A replica's log, as its node's agent streams it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass

import grpc
from grpc import aio

from deepinfer.control_plane.openai_errors import NodeNotConnected
from deepinfer.fleet.errors import InvalidRequest, ReplicaNotFound
from deepinfer.fleet.resources import Node
from deepinfer.protos import agent_service as pb


@dataclass(frozen=True, slots=True)
class LogRequest:
    """Which part of which replica's log."""

    replica: str
    tail: int = 0  # last lines; 0 is all
    follow: bool = False
    previous: bool = False  # the run before the last restart


async def log_of(node: Node, wanted: LogRequest) -> AsyncGenerator[bytes, None]:
    """The log's pieces. The first is empty and comes when the agent has agreed; until then a status can be chosen."""
    request = pb.ReadLogsRequest(
        placement=wanted.replica, tail_lines=wanted.tail, follow=wanted.follow, previous=wanted.previous
    )
    async with aio.insecure_channel(node.agent_endpoint) as channel:
        call = channel.unary_stream(
            pb.READ_LOGS,
            request_serializer=pb.ReadLogsRequest.SerializeToString,
            response_deserializer=pb.LogChunk.FromString,
        )(request)
        try:
            await call.wait_for_connection()
        except aio.AioRpcError as error:
            raise _named(error, node) from error
        yield b""
        async for chunk in call:
            yield chunk.data


def _named(error: aio.AioRpcError, node: Node) -> Exception:
    match error.code():
        case grpc.StatusCode.NOT_FOUND:
            return ReplicaNotFound(error.details())
        case grpc.StatusCode.INVALID_ARGUMENT:
            return InvalidRequest(error.details())
    return NodeNotConnected(
        f"The agent of node {node.name} does not answer at {node.agent_endpoint} ({error.code().name}); is it running?"
    )
