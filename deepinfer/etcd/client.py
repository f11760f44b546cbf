"""The client: ranges, transactions, leases, watches, over one or several endpoints.

Every call has a deadline. What may be repeated is repeated on the next endpoint until then. A write is sent once: it is
applied, refused, surely not applied (`Unavailable`), or `Ambiguous`; cancelling a write is ambiguous too.
`Access` says how one gets in, and below which prefix all keys lie.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from typing import Any

from grpc import aio

from deepinfer.etcd import messages as pb
from deepinfer.etcd.access import OPEN, Access
from deepinfer.etcd.backoff import Backoff
from deepinfer.etcd.endpoints import (
    COMPACT,
    LEASE_GRANT,
    LEASE_REVOKE,
    RANGE,
    RANGES,
    STATUS,
    TXN,
    Connection,
    Endpoints,
    Method,
)
from deepinfer.etcd.errors import Ambiguous, EtcdError, LeaseGone, Unavailable, failure_of
from deepinfer.etcd.lease import RENEWALS, Lease
from deepinfer.etcd.messages import KeyValue
from deepinfer.etcd.namespace import Namespace
from deepinfer.etcd.snapshot import Piece, snapshot
from deepinfer.etcd.transaction import Outcome, Transaction
from deepinfer.etcd.watch import Batch, nobody_asks, watch

__all__ = ["Client", "Outcome", "Transaction"]

PAGE = 500  # keys a page; a page must stay below the 64 MiB a message may have
_ALARM = re.compile(r"\balarm:\s*(\w+)")  # an alarm among a status's errors: its message as text


class Client:
    """Make it inside the running event loop, and close it: `async with Client([...]) as client`."""

    def __init__(self, endpoints: Sequence[str], *, timeout: float = 3.0, access: Access = OPEN) -> None:
        self._endpoints = Endpoints(endpoints, access)
        self._namespace = Namespace(access.namespace)
        self._timeout = timeout

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._endpoints.close()

    @property
    def endpoint(self) -> str:
        """Where the next call goes."""
        return self._endpoints.current.endpoint

    async def read_prefixes(self, *prefixes: bytes, page: int = PAGE) -> tuple[list[KeyValue], int]:
        """All keys that start with one of these, all at one revision, and that revision."""
        limits = map(self._namespace.range_of, prefixes)
        ranges = [pb.RangeRequest(key=start, range_end=end, limit=page) for start, end in limits]
        first_pages, revision = await self._first_pages(ranges)
        found: list[KeyValue] = []
        for request, first in zip(ranges, first_pages, strict=True):
            answer, request.revision = first, revision
            found.extend(map(self._key_value, answer.kvs))
            while answer.more:
                request.key = answer.kvs[-1].key + b"\0"
                answer = await self._call(RANGE, request)
                found.extend(map(self._key_value, answer.kvs))
        return found, revision

    async def get(self, key: bytes) -> KeyValue | None:
        answer = await self._call(RANGE, pb.RangeRequest(key=self._namespace.outer(key)))
        return self._key_value(answer.kvs[0]) if answer.kvs else None

    async def transact(self, transaction: Transaction) -> Outcome:
        """Raises `Ambiguous` when the answer was lost. At most 128 compares and 128 operations."""
        answer = await self._call(TXN, self._namespace.transaction(transaction).request())
        if not answer.succeeded:
            return Outcome(applied=False, revision=answer.header.revision, found=self._ranges_of(answer))
        changed = any(part.HasField("response_put") or part.response_delete_range.deleted for part in answer.responses)
        return Outcome(applied=True, revision=answer.header.revision, changed=changed)

    async def compact(self, revision: int) -> None:
        """Forget the history before `revision`."""
        await self._call(COMPACT, pb.CompactionRequest(revision=revision, physical=True))

    async def server_version(self) -> str:
        answer = await self._call(STATUS, pb.StatusRequest())
        return str(answer.version)

    async def alarms(self) -> list[str]:
        """The names of those that its members have raised, such as NOSPACE, as the one in use knows them."""
        answer = await self._call(STATUS, pb.StatusRequest())
        return [name for error in answer.errors for name in _ALARM.findall(error)]

    def snapshot(self) -> AsyncGenerator[Piece, None]:
        """See `deepinfer.etcd.snapshot.snapshot`: all that etcd holds, whatever the namespace. Close it."""
        return snapshot(self._endpoints.current)

    def watch(
        self, prefix: bytes, *, start: int = 0, exact: bool = False, connected: Callable[[bool], None] = nobody_asks
    ) -> AsyncGenerator[Batch, None]:
        """See `deepinfer.etcd.watch.watch`. `exact` watches one key, not a prefix. Close it: `contextlib.aclosing`."""
        key, end = self._namespace.range_of(prefix)
        create = pb.WatchCreateRequest(key=key, range_end=b"" if exact else end, start_revision=start)
        batches = watch(self._endpoints, create, connected)
        return self._namespace.batches(batches) if self._namespace.prefix else batches

    @contextlib.asynccontextmanager
    async def lease(self, ttl_seconds: int, renewals: int = RENEWALS) -> AsyncIterator[Lease]:
        """A lease that is renewed while the block runs, and revoked at its end."""
        lease = await self.expiry(ttl_seconds)
        try:
            async with lease.kept_alive(self._endpoints, renewals):
                yield lease
        finally:
            # It ends by itself if this fails: nobody renews it any more.
            with contextlib.suppress(EtcdError):
                await self.revoke(lease.id)

    async def expiry(self, ttl_seconds: int) -> Lease:
        """A lease that nobody renews: what is written under it ends by itself."""
        sent = time.monotonic()
        granted = await self._call(LEASE_GRANT, pb.LeaseGrantRequest(TTL=ttl_seconds))
        return Lease(granted.ID, granted.TTL, sent + granted.TTL)

    async def revoke(self, lease_id: int) -> None:
        """End a lease now, and with it every key it holds."""
        with contextlib.suppress(LeaseGone):
            await self._call(LEASE_REVOKE, pb.LeaseRevokeRequest(ID=lease_id))

    async def _first_pages(self, ranges: Sequence[Any]) -> tuple[Sequence[Any], int]:
        """By one request, whatever their number."""
        if len(ranges) == 1:
            answer = await self._call(RANGE, ranges[0])
            return [answer], answer.header.revision
        together = pb.TxnRequest(success=[pb.RequestOp(request_range=each) for each in ranges])
        answer = await self._call(RANGES, together)
        return [part.response_range for part in answer.responses], answer.header.revision

    async def _call(self, method: Method, request: Any) -> Any:
        deadline = time.monotonic() + self._timeout
        backoff = Backoff(longest=1.0)
        while True:
            connection = self._endpoints.current
            try:
                return await self._attempt(connection, method, request, deadline)
            except (Unavailable, Ambiguous) as failure:
                self._endpoints.leave_with_streams(connection)
                pause = backoff.next_pause()
                if isinstance(failure, Ambiguous) or time.monotonic() + pause >= deadline:
                    raise
            await asyncio.sleep(pause)

    async def _attempt(self, connection: Connection, method: Method, request: Any, deadline: float) -> Any:
        left = deadline - time.monotonic()
        if method.repeatable and len(self._endpoints) > 1:
            left = min(left, max(1.0, self._timeout / 2))  # leave time for another endpoint
        began = time.monotonic()
        try:
            answer = await connection.call(method, request, left)
        except aio.AioRpcError as error:
            raise failure_of(error, connection.endpoint, repeatable=method.repeatable) from error
        if method.tells_pace:
            self._endpoints.took(connection, began, time.monotonic())
        return answer

    def _key_value(self, kv: Any) -> KeyValue:
        return self._namespace.inner(KeyValue(kv.key, kv.value, kv.mod_revision, kv.create_revision, kv.lease))

    def _ranges_of(self, answer: Any) -> tuple[KeyValue, ...]:
        return tuple(self._key_value(kv) for part in answer.responses for kv in part.response_range.kvs)
