"""A lease, kept alive, that knows by this machine's own clock when it can no longer be relied upon.

The clock starts when a renewal is *sent* that etcd then acknowledges, so this side always stops before etcd does.
The other direction is not true: a restart of etcd or a change of its leader prolongs leases, so a key that has gone is
no proof that its holder stopped, and whatever a holder writes must compare a key of its own (fencing).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator

from grpc import aio

from deepinfer.etcd import messages as pb
from deepinfer.etcd.backoff import Backoff
from deepinfer.etcd.endpoints import END_OF_STREAM, Endpoints, Stream
from deepinfer.etcd.errors import EtcdError, Unavailable

RENEWALS = 4
"""In a lease's time: one that fails leaves time to try another endpoint twice."""

log = logging.getLogger(__name__)


class Lease:
    """`lost` is set when etcd says the lease has ended, or at its deadline by our own clock."""

    def __init__(self, lease_id: int, ttl_seconds: int, deadline: float) -> None:
        self.id = lease_id
        self.ttl_seconds = ttl_seconds
        self.lost = asyncio.Event()
        self._deadline = deadline

    @property
    def seconds_left(self) -> float:
        """How long it surely holds; right even when the event loop was stuck and `lost` comes late."""
        return 0.0 if self.lost.is_set() else max(0.0, self._deadline - time.monotonic())

    @contextlib.asynccontextmanager
    async def kept_alive(self, endpoints: Endpoints, renewals: int = RENEWALS) -> AsyncIterator[None]:
        """Renew while the block runs, so often in the lease's time."""
        rest = self.ttl_seconds / renewals
        renewing = asyncio.create_task(self._renew_until_lost(endpoints, rest), name=f"lease {self.id:x}")
        try:
            yield
        finally:
            renewing.cancel()
            await asyncio.wait({renewing})

    async def _renew_until_lost(self, endpoints: Endpoints, rest: float) -> None:
        reason = "etcd has ended it"
        try:
            async with asyncio.timeout(self.seconds_left) as until_deadline:
                await self._renew_until_ended(endpoints, rest, until_deadline)
        except TimeoutError:
            reason = "no renewal was acknowledged in time"
        log.warning("lease %x is lost: %s", self.id, reason)
        self.lost.set()

    async def _renew_until_ended(self, endpoints: Endpoints, rest: float, until_deadline: asyncio.Timeout) -> None:
        """Returns when etcd says that the lease has ended; failures lead to the next endpoint."""
        backoff = Backoff(first=0.1, longest=min(1.0, self.ttl_seconds / 6))
        while True:
            connection = endpoints.current
            try:
                return await self._renew_over(connection.keep_alive(), rest, until_deadline)
            except (aio.AioRpcError, asyncio.InvalidStateError, EtcdError, TimeoutError) as error:
                cause = error.details() if isinstance(error, aio.AioRpcError) else str(error) or "no answer in time"
                log.warning("renewing lease %x at %s failed: %s", self.id, connection.endpoint, cause)
            endpoints.leave(connection)
            await endpoints.rest(backoff)

    async def _renew_over(self, stream: Stream, rest: float, until_deadline: asyncio.Timeout) -> None:
        try:
            while True:
                sent = time.monotonic()
                async with asyncio.timeout(self.ttl_seconds / 3):
                    await stream.write(pb.LeaseKeepAliveRequest(ID=self.id))
                    answer = await stream.read()
                if answer is END_OF_STREAM:
                    raise Unavailable("etcd ended the stream")
                if answer.TTL <= 0:
                    return
                self._deadline = sent + answer.TTL
                until_deadline.reschedule(asyncio.get_running_loop().time() + self.seconds_left)
                await asyncio.sleep(rest)
        finally:
            stream.cancel()
