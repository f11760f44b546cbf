"""A watch that goes on over every failure, without a gap and without a repeat, or says that the history is gone.

It resumes after the last *event* it gave out. The revision in a response's header is no such mark: while a watch
catches up, the header is ahead of the events. Fragments of one batch are joined before the mark moves. A silent stream
is asked for a sign of life (progress), and given up when none comes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Any

from grpc import aio

from deepinfer.etcd import messages as pb
from deepinfer.etcd.backoff import Backoff
from deepinfer.etcd.endpoints import END_OF_STREAM, Endpoints, Stream
from deepinfer.etcd.errors import Compacted, Denied, HistoryReplaced, Unavailable, failure_of
from deepinfer.etcd.messages import Change

log = logging.getLogger(__name__)

IDLE_SECONDS = 15.0
ANSWER_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class Batch:
    """Changes in the order they happened. The watch's first batch is empty: from `revision` on it misses nothing."""

    changes: tuple[Change, ...]
    revision: int


@dataclass(slots=True)
class _Followed:
    """Whose history a watch gives out."""

    cluster: int = 0
    doubts: int = 0  # endpoints in a row that tell another history

    def check(self, header: Any, last_seen: int) -> None:
        """Raises `HistoryReplaced` if what was seen up to the revision `last_seen` never happened there."""
        if self.cluster not in (0, header.cluster_id):
            raise HistoryReplaced(f"cluster {header.cluster_id:x} answers where {self.cluster:x} did")
        if header.revision < last_seen:
            raise HistoryReplaced(f"the store is at revision {header.revision}, but was at {last_seen} before")
        self.cluster, self.doubts = header.cluster_id, 0


def nobody_asks(_: bool) -> None:
    """For a watch whose breaks are nobody's business."""


async def watch(
    endpoints: Endpoints, create: Any, connected: Callable[[bool], None] = nobody_asks
) -> AsyncGenerator[Batch, None]:
    """Yield batches for ever. Raises `Compacted` when the history is gone, `HistoryReplaced` when it is another one,
    `Denied` when it may not be read.

    `create.start_revision` 0 means from now on; it is moved along as batches are given out. `connected` is told False
    whenever the stream breaks, and True whenever it is set up.
    """
    create.fragment = True
    told_start = False
    followed = _Followed()
    backoff = Backoff()
    while True:
        connection = endpoints.current
        try:
            async with contextlib.aclosing(_batches(connection.watch(), create, followed)) as batches:
                async for batch in batches:
                    backoff.reset()
                    create.start_revision = batch.revision + 1
                    if not batch.changes:
                        connected(True)
                    if batch.changes or not told_start:
                        told_start = True
                        yield batch
        except Unavailable as failure:
            log.warning("watch of %r at %s broke: %s", create.key, connection.endpoint, failure)
        except HistoryReplaced as doubt:
            followed.doubts += 1  # it may be one member that lags behind: the others are asked first
            if followed.doubts >= len(endpoints):
                raise
            log.warning("watch of %r at %s: %s; asking another endpoint", create.key, connection.endpoint, doubt)
        except aio.AioRpcError as error:
            failure_read = failure_of(error, connection.endpoint, repeatable=True)
            if isinstance(failure_read, Denied):
                raise failure_read from error
            log.warning("watch of %r broke: %s", create.key, failure_read)
        connected(False)
        endpoints.leave(connection)
        await endpoints.rest(backoff)


async def _batches(stream: Stream, create: Any, followed: _Followed) -> AsyncGenerator[Batch, None]:
    """The whole batches of one stream; an empty one says that the watch is set up."""
    events: list[Any] = []
    try:
        await _write(stream, pb.WatchRequest(create_request=create))
        while True:
            response = await _next_response(stream)
            _raise_if_ended(response)
            events += response.events
            if response.created:
                followed.check(response.header, create.start_revision - 1)
                yield Batch((), create.start_revision - 1 if create.start_revision else response.header.revision)
            elif events and not response.fragment:
                yield Batch(tuple(map(_change, events)), events[-1].kv.mod_revision)
                events = []
    finally:
        stream.cancel()


async def _next_response(stream: Stream) -> Any:
    """Raises `Unavailable` when the stream has ended, or stays silent although asked for progress."""
    reading = asyncio.ensure_future(stream.read())
    try:
        done, _ = await asyncio.wait({reading}, timeout=IDLE_SECONDS)
        if not done:
            await _write(stream, pb.WatchRequest(progress_request=pb.WatchProgressRequest()))
            done, _ = await asyncio.wait({reading}, timeout=ANSWER_SECONDS)
        if not done:
            raise Unavailable(f"silent for {IDLE_SECONDS + ANSWER_SECONDS:.0f} s")
        response = reading.result()
    finally:
        reading.cancel()  # which also ends the stream: nothing reads it any more
        await asyncio.gather(reading, return_exceptions=True)
    if response is END_OF_STREAM:
        raise Unavailable("etcd ended the stream")
    return response


async def _write(stream: Stream, request: Any) -> None:
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            await stream.write(request)
    except TimeoutError as error:
        raise Unavailable("the stream takes no request") from error
    except asyncio.InvalidStateError as error:  # grpc.aio's word for: the stream is over
        raise Unavailable("the stream is closed") from error


def _raise_if_ended(response: Any) -> None:
    if response.compact_revision:
        raise Compacted(f"the history before revision {response.compact_revision} is gone")
    if response.canceled and "permission denied" in response.cancel_reason:
        raise Denied(response.cancel_reason)
    if response.canceled:
        raise Unavailable(f"etcd cancelled the watch: {response.cancel_reason}")


def _change(event: Any) -> Change:
    value = None if event.type == pb.Event.DELETE else event.kv.value
    return Change(event.kv.key, value, event.kv.mod_revision)
