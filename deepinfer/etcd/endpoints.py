"""The connections to etcd's endpoints, and which of them is in use. A failure moves on to the next one."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from grpc import aio

from deepinfer.etcd import messages as pb

LARGEST_MESSAGE = 64 << 20
METADATA = (("hasleader", "true"),)
"""Makes a member that has lost its cluster say so, instead of leaving a watch open that will never hear anything."""

_CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", LARGEST_MESSAGE),
    ("grpc.max_send_message_length", LARGEST_MESSAGE),
    # etcd hangs up on clients that ping more often than every 5 s, or without an open stream.
    ("grpc.keepalive_time_ms", 6_000),
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.http2.max_pings_without_data", 0),
    # This, not keepalive_timeout_ms, is how long grpc waits for a ping's answer; it defaults to a minute.
    ("grpc.http2.ping_timeout_ms", 3_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.http2.bdp_probe", 0),  # a ping with every message would wake this process once more
)


@dataclass(frozen=True, slots=True)
class Method:
    """One unary call. A repeatable one may be sent twice without harm: it reads, or doing it twice is doing it once."""

    path: str
    request: Any
    response: Any
    repeatable: bool


RANGE = Method("KV/Range", pb.RangeRequest, pb.RangeResponse, repeatable=True)
TXN = Method("KV/Txn", pb.TxnRequest, pb.TxnResponse, repeatable=False)
COMPACT = Method("KV/Compact", pb.CompactionRequest, pb.CompactionResponse, repeatable=True)
# A lease granted twice leaves one that nobody renews; it ends by itself.
LEASE_GRANT = Method("Lease/LeaseGrant", pb.LeaseGrantRequest, pb.LeaseGrantResponse, repeatable=True)
LEASE_REVOKE = Method("Lease/LeaseRevoke", pb.LeaseRevokeRequest, pb.LeaseRevokeResponse, repeatable=True)
STATUS = Method("Maintenance/Status", pb.StatusRequest, pb.StatusResponse, repeatable=True)

UnaryCall = Callable[..., Any]
Stream = Any
"""grpc.aio's bidirectional call; its stubs say too little to be of use."""
END_OF_STREAM: Any = aio.EOF  # type: ignore[attr-defined]  # the stubs forgot it


class Connection:
    """One channel to one endpoint."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self._channel: Any = aio.insecure_channel(endpoint, options=_CHANNEL_OPTIONS)
        self._calls: dict[str, UnaryCall] = {}
        self._watch = self._stream("Watch/Watch", pb.WatchRequest, pb.WatchResponse)
        self._keep_alive = self._stream("Lease/LeaseKeepAlive", pb.LeaseKeepAliveRequest, pb.LeaseKeepAliveResponse)

    async def call(self, method: Method, request: Any, timeout: float) -> Any:
        send = self._calls.get(method.path)
        if send is None:
            send = self._calls[method.path] = self._channel.unary_unary(
                f"/etcdserverpb.{method.path}", method.request.SerializeToString, method.response.FromString
            )
        return await send(request, timeout=timeout, metadata=METADATA)

    def watch(self) -> Stream:
        return self._watch(metadata=METADATA)

    def keep_alive(self) -> Stream:
        return self._keep_alive(metadata=METADATA)

    async def close(self) -> None:
        await self._channel.close()

    def _stream(self, path: str, request: Any, response: Any) -> Callable[..., Stream]:
        opened: Callable[..., Stream] = self._channel.stream_stream(
            f"/etcdserverpb.{path}", request.SerializeToString, response.FromString
        )
        return opened


class Endpoints:
    """All connections; `current` is the one in use. Starts at a random one, so that clients spread over the members."""

    def __init__(self, endpoints: Sequence[str]) -> None:
        self._connections = [Connection(endpoint) for endpoint in endpoints]
        self._chosen = random.randrange(len(self._connections))  # noqa: S311  # spreads load, guards nothing

    def __len__(self) -> int:
        return len(self._connections)

    @property
    def current(self) -> Connection:
        return self._connections[self._chosen]

    def leave(self, failed: Connection) -> None:
        """Move on from `failed`, unless somebody else has already."""
        if failed is self.current:
            self._chosen = (self._chosen + 1) % len(self._connections)

    async def close(self) -> None:
        await asyncio.gather(*(connection.close() for connection in self._connections))
