"""The client: ranges, transactions, leases, watches, over one or several endpoints.

Every call has a deadline. What may be repeated is repeated on the next endpoint until then. A write is sent once: it is
applied, refused, surely not applied (`Unavailable`), or `Ambiguous`; cancelling a write is ambiguous too.
No TLS and no login yet.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from grpc import aio

from deepinfer.etcd import messages as pb
from deepinfer.etcd.backoff import Backoff
from deepinfer.etcd.endpoints import (
    COMPACT,
    LEASE_GRANT,
    LEASE_REVOKE,
    RANGE,
    STATUS,
    TXN,
    Connection,
    Endpoints,
    Method,
)
from deepinfer.etcd.errors import Ambiguous, EtcdError, LeaseGone, Unavailable, failure_of
from deepinfer.etcd.lease import Lease
from deepinfer.etcd.messages import KeyValue, prefix_end
from deepinfer.etcd.watch import Batch, watch

PAGE = 500  # keys a page; a page must stay below the 64 MiB a message may have


@dataclass(frozen=True, slots=True)
class Transaction:
    """Put and delete if every key is still at its `unchanged` mod_revision (0: the key is absent)."""

    unchanged: Sequence[tuple[bytes, int]]
    puts: Sequence[tuple[bytes, bytes]] = ()
    deletes: Sequence[bytes] = ()
    lease: int = 0  # the puts end with it


@dataclass(frozen=True, slots=True)
class Outcome:
    """Whether the transaction was applied, at which revision, and if not: the compared keys as they are now."""

    applied: bool
    revision: int
    found: tuple[KeyValue, ...] = ()


class Client:
    """Make it inside the running event loop, and close it: `async with Client([...]) as client`."""

    def __init__(self, endpoints: Sequence[str], *, timeout: float = 3.0) -> None:
        self._endpoints = Endpoints(endpoints)
        self._timeout = timeout

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._endpoints.close()

    async def read_prefix(self, prefix: bytes, *, page: int = PAGE) -> tuple[list[KeyValue], int]:
        """All keys that start with `prefix`, all at one revision, and that revision."""
        found: list[KeyValue] = []
        start, revision = prefix or b"\0", 0
        while True:
            request = pb.RangeRequest(key=start, range_end=prefix_end(prefix), limit=page, revision=revision)
            answer = await self._call(RANGE, request)
            revision = revision or answer.header.revision
            found.extend(map(_key_value, answer.kvs))
            if not answer.more:
                return found, revision
            start = found[-1].key + b"\0"

    async def get(self, key: bytes) -> KeyValue | None:
        answer = await self._call(RANGE, pb.RangeRequest(key=key))
        return _key_value(answer.kvs[0]) if answer.kvs else None

    async def transact(self, transaction: Transaction) -> Outcome:
        """Raises `Ambiguous` when the answer was lost. At most 128 compares and 128 operations."""
        answer = await self._call(TXN, _txn_request(transaction))
        found = () if answer.succeeded else _ranges_of(answer)
        return Outcome(answer.succeeded, answer.header.revision, found)

    async def compact(self, revision: int) -> None:
        """Forget the history before `revision`."""
        await self._call(COMPACT, pb.CompactionRequest(revision=revision, physical=True))

    async def server_version(self) -> str:
        answer = await self._call(STATUS, pb.StatusRequest())
        return str(answer.version)

    def watch(self, prefix: bytes, *, start: int = 0, exact: bool = False) -> AsyncGenerator[Batch, None]:
        """See `deepinfer.etcd.watch.watch`. `exact` watches one key, not a prefix. Close it: `contextlib.aclosing`."""
        end = b"" if exact else prefix_end(prefix)
        return watch(self._endpoints, pb.WatchCreateRequest(key=prefix or b"\0", range_end=end, start_revision=start))

    @contextlib.asynccontextmanager
    async def lease(self, ttl_seconds: int) -> AsyncIterator[Lease]:
        """A lease that is renewed while the block runs, and revoked at its end."""
        sent = time.monotonic()
        granted = await self._call(LEASE_GRANT, pb.LeaseGrantRequest(TTL=ttl_seconds))
        lease = Lease(granted.ID, granted.TTL, sent + granted.TTL)
        try:
            async with lease.kept_alive(self._endpoints):
                yield lease
        finally:
            # It ends by itself if this fails: nobody renews it any more.
            with contextlib.suppress(EtcdError):
                await self.revoke(lease.id)

    async def revoke(self, lease_id: int) -> None:
        """End a lease now, and with it every key it holds."""
        with contextlib.suppress(LeaseGone):
            await self._call(LEASE_REVOKE, pb.LeaseRevokeRequest(ID=lease_id))

    async def _call(self, method: Method, request: Any) -> Any:
        deadline = time.monotonic() + self._timeout
        backoff = Backoff(longest=1.0)
        while True:
            connection = self._endpoints.current
            try:
                return await self._attempt(connection, method, request, deadline)
            except (Unavailable, Ambiguous) as failure:
                self._endpoints.leave(connection)
                pause = backoff.next_pause()
                if isinstance(failure, Ambiguous) or time.monotonic() + pause >= deadline:
                    raise
            await asyncio.sleep(pause)

    async def _attempt(self, connection: Connection, method: Method, request: Any, deadline: float) -> Any:
        left = deadline - time.monotonic()
        if method.repeatable and len(self._endpoints) > 1:
            left = min(left, max(1.0, self._timeout / 2))  # leave time for another endpoint
        try:
            return await connection.call(method, request, left)
        except aio.AioRpcError as error:
            raise failure_of(error, connection.endpoint, repeatable=method.repeatable) from error


def _key_value(kv: Any) -> KeyValue:
    return KeyValue(kv.key, kv.value, kv.mod_revision, kv.create_revision, kv.lease)


def _ranges_of(answer: Any) -> tuple[KeyValue, ...]:
    return tuple(_key_value(kv) for part in answer.responses for kv in part.response_range.kvs)


def _txn_request(transaction: Transaction) -> Any:
    puts = [pb.PutRequest(key=key, value=value, lease=transaction.lease) for key, value in transaction.puts]
    deletes = [pb.DeleteRangeRequest(key=key) for key in transaction.deletes]
    return pb.TxnRequest(
        compare=[
            pb.Compare(key=key, target=pb.Compare.MOD, result=pb.Compare.EQUAL, mod_revision=revision)
            for key, revision in transaction.unchanged
        ],
        success=[pb.RequestOp(request_put=put) for put in puts]
        + [pb.RequestOp(request_delete_range=delete) for delete in deletes],
        failure=[
            pb.RequestOp(request_range=pb.RangeRequest(key=key, keys_only=True)) for key, _ in transaction.unchanged
        ],
    )
