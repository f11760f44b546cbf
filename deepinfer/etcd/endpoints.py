"""The connections to etcd's endpoints, and which of them is in use. A failure moves on to the next one,
and so does a member that is slow while others may not be."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import grpc
from grpc import aio

from deepinfer.etcd import messages as pb
from deepinfer.etcd.access import OPEN, Access, Tls, address_of
from deepinfer.etcd.backoff import Backoff
from deepinfer.etcd.errors import failure_of
from deepinfer.etcd.pace import Paces
from deepinfer.etcd.session import Session, wants_login
from deepinfer.etcd.streams import END_OF_STREAM, LOGIN_SECONDS, Stream

__all__ = ["END_OF_STREAM", "Connection", "Endpoints", "Method", "Stream"]

log = logging.getLogger(__name__)

LARGEST_MESSAGE = 64 << 20
_HAS_LEADER = ("hasleader", "true")
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
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.http2.bdp_probe", 0),  # a ping with every message would wake this process once more
)


@dataclass(frozen=True, slots=True)
class Method:
    """One unary call. A repeatable one may be sent twice without harm: it reads, or doing it twice is doing it once.

    Those that are short and need the cluster tell how fast a member is.
    """

    path: str
    request: Any
    response: Any
    repeatable: bool
    tells_pace: bool = False


RANGE = Method("KV/Range", pb.RangeRequest, pb.RangeResponse, repeatable=True, tells_pace=True)
TXN = Method("KV/Txn", pb.TxnRequest, pb.TxnResponse, repeatable=False, tells_pace=True)
RANGES = Method("KV/Txn", pb.TxnRequest, pb.TxnResponse, repeatable=True, tells_pace=True)  # one that writes nothing
COMPACT = Method("KV/Compact", pb.CompactionRequest, pb.CompactionResponse, repeatable=True)
# A lease granted twice leaves one that nobody renews; it ends by itself.
LEASE_GRANT = Method("Lease/LeaseGrant", pb.LeaseGrantRequest, pb.LeaseGrantResponse, repeatable=True)
LEASE_REVOKE = Method("Lease/LeaseRevoke", pb.LeaseRevokeRequest, pb.LeaseRevokeResponse, repeatable=True)
STATUS = Method("Maintenance/Status", pb.StatusRequest, pb.StatusResponse, repeatable=True)

AUTHENTICATE = Method("Auth/Authenticate", pb.AuthenticateRequest, pb.AuthenticateResponse, repeatable=True)
_REACHABLE_SECONDS = 10.0  # then it is tried whatever the channel says

UnaryCall = Callable[..., Any]


class Connection:
    """One channel to one endpoint."""

    def __init__(self, endpoint: str, tls: Tls | None, session: Session) -> None:
        self.endpoint = endpoint
        self._session = session
        self._channel = _channel(endpoint, tls)
        self._calls: dict[str, UnaryCall] = {}
        self._streams: WeakSet[Stream] = WeakSet()
        self._watch = self._stream("Watch/Watch", pb.WatchRequest, pb.WatchResponse)
        self._keep_alive = self._stream("Lease/LeaseKeepAlive", pb.LeaseKeepAliveRequest, pb.LeaseKeepAliveResponse)

    async def call(self, method: Method, request: Any, timeout: float) -> Any:
        deadline = time.monotonic() + timeout
        token = await self._session.token(self._authenticate, timeout)
        try:
            return await self._send(method, request, deadline - time.monotonic(), token)
        except aio.AioRpcError as error:
            if not (self._session.has_login and wants_login(error)):
                raise
        self._session.forget(token)
        token = await self._session.token(self._authenticate, deadline - time.monotonic())
        return await self._send(method, request, deadline - time.monotonic(), token)

    def watch(self) -> Stream:
        return self._opened(self._watch)

    def keep_alive(self) -> Stream:
        return self._opened(self._keep_alive)

    async def snapshot(self, seconds: float) -> Any:
        """grpc.aio's stream of a snapshot's pieces; `seconds` are for the login. An old token is not noticed here."""
        token = await self._session.token(self._authenticate, seconds)
        send = self._channel.unary_stream(
            "/etcdserverpb.Maintenance/Snapshot",
            pb.SnapshotRequest.SerializeToString,
            pb.SnapshotResponse.FromString,
        )
        return send(pb.SnapshotRequest(), metadata=_metadata(token))

    def end_streams(self, reason: str) -> None:
        """Their readers open them anew, over the connection that is in use by then."""
        for stream in list(self._streams):
            stream.leave(reason)

    async def reachable(self, seconds: float) -> None:
        """Wait until it is connected, so long at most."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._channel.channel_ready()

    async def close(self) -> None:
        await self._channel.close()

    def _opened(self, open_call: Callable[[str], Any]) -> Stream:
        stream = Stream(open_call, self._session, self._authenticate)
        self._streams.add(stream)
        return stream

    async def _send(self, method: Method, request: Any, timeout: float, token: str) -> Any:
        send = self._calls.get(method.path)
        if send is None:
            send = self._calls[method.path] = self._channel.unary_unary(
                f"/etcdserverpb.{method.path}", method.request.SerializeToString, method.response.FromString
            )
        return await send(request, timeout=timeout, metadata=_metadata(token))

    async def _authenticate(self, name: str, password: str) -> str:
        request = pb.AuthenticateRequest(name=name, password=password)
        try:
            answer = await self._send(AUTHENTICATE, request, LOGIN_SECONDS, "")
        except aio.AioRpcError as error:
            if "authentication is not enabled" in (error.details() or ""):
                return ""
            raise failure_of(error, self.endpoint, repeatable=True) from error
        return str(answer.token)

    def _stream(self, path: str, request: Any, response: Any) -> Callable[[str], Any]:
        opened = self._channel.stream_stream(f"/etcdserverpb.{path}", request.SerializeToString, response.FromString)
        return lambda token: opened(metadata=_metadata(token))


def _channel(endpoint: str, tls: Tls | None) -> Any:
    """TLS where the endpoint says so, or where it says nothing and certificates are given."""
    address = address_of(endpoint)
    if address.tls is False or (address.tls is None and tls is None):
        return aio.insecure_channel(address.host_port, options=_CHANNEL_OPTIONS)
    tls = tls or Tls()
    credentials = grpc.ssl_channel_credentials(tls.ca, tls.key, tls.certificate)
    return aio.secure_channel(address.host_port, credentials, options=_CHANNEL_OPTIONS)


def _metadata(token: str) -> tuple[tuple[str, str], ...]:
    return (_HAS_LEADER, ("token", token)) if token else (_HAS_LEADER,)


class Endpoints:
    """All connections; `current` is the one in use. Starts at a random one, so that clients spread over the members."""

    def __init__(self, endpoints: Sequence[str], access: Access = OPEN) -> None:
        session = Session(access.login)
        self._connections = [Connection(endpoint, access.tls, session) for endpoint in endpoints]
        self._chosen = random.randrange(len(self._connections))  # noqa: S311  # spreads load, guards nothing
        self._paces = Paces(len(self._connections))

    def __len__(self) -> int:
        return len(self._connections)

    @property
    def current(self) -> Connection:
        return self._connections[self._chosen]

    def leave(self, failed: Connection) -> None:
        """Move on from `failed`, unless somebody else has already."""
        if failed is self.current:
            self._chosen = (self._chosen + 1) % len(self._connections)

    def leave_with_streams(self, failed: Connection) -> None:
        """A call of `failed` had no answer in time: what its streams tell may be late, too."""
        self.leave(failed)
        if failed is not self.current:
            failed.end_streams(f"{failed.endpoint} does not answer calls; going to {self.current.endpoint}")

    def took(self, used: Connection, began: float, ended: float) -> None:
        """A call of `used` has ended. Moves on when others may be faster, and takes the streams along."""
        if used is not self.current:
            return
        better = self._paces.better_than(self._chosen, began, ended)
        if better is not None:
            self._chosen = better
            log.warning("etcd at %s is slow; trying %s", used.endpoint, self.current.endpoint)
            used.end_streams(f"{used.endpoint} is slow; going to {self.current.endpoint}")

    async def rest(self, backoff: Backoff) -> None:
        """Before a stream is opened again. Where there is no other endpoint, also until this one is back: to learn that
        from failing streams would take longer, and work."""
        await backoff.pause()
        if len(self) == 1:
            await self.current.reachable(_REACHABLE_SECONDS)

    async def close(self) -> None:
        await asyncio.gather(*(connection.close() for connection in self._connections))
