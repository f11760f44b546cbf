"""The parts of a gateway process that face clients, put together; the same in the main process and in all others."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from deepinfer.control_plane.access.key_ring import KeyRing
from deepinfer.control_plane.gateway.access_log import access_log
from deepinfer.control_plane.gateway.admission import Admission, QueueLimits
from deepinfer.control_plane.gateway.drain import Drain
from deepinfer.control_plane.gateway.metrics import Metrics
from deepinfer.control_plane.gateway.parts import Parts
from deepinfer.control_plane.gateway.siblings import Siblings
from deepinfer.control_plane.gateway.tracing import tracing
from deepinfer.control_plane.limits.ledger import Ledger
from deepinfer.control_plane.limits.usage_sharing import share_usage
from deepinfer.control_plane.router.replicas import Replicas
from deepinfer.control_plane.routing import keep_routing
from deepinfer.fleet.config import ServeConfig
from deepinfer.fleet.mirror import Mirror


@asynccontextmanager
async def gateway_parts(serve: ServeConfig, siblings: Siblings) -> AsyncIterator[Parts]:
    async with access_log(serve.access_log) as lines, tracing(serve.tracing) as spans, Replicas() as replicas:
        yield Parts(
            replicas,
            Metrics(replicas, lines, spans),
            Admission(replicas, QueueLimits(serve.queue_seconds, serve.queue_requests)),
            Ledger(),
            Drain(serve.drain_seconds, replicas.cut_off),
            siblings,
            serve.continue_streams,
            frozenset(serve.allowed_media_domains),
        )


async def keep_up(mirror: Mirror, parts: Parts, keys: KeyRing, known: asyncio.Event) -> None:
    """With what the store says of the fleet, and what other gateways say of their keys' use. `known` is set once what
    there is has been read. Never returns."""
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(keep_routing(mirror, parts.replicas, keys, known))
        tasks.create_task(share_usage(mirror.store, parts.ledger, process_name()))


def process_name() -> str:
    """Like no other's."""
    return f"{socket.gethostname()}-{os.getpid()}"
