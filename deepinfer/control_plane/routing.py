"""What the store says becomes what the router knows; the same in every gateway process."""

from __future__ import annotations

import asyncio

from deepinfer.control_plane.access.key_ring import KeyRing
from deepinfer.control_plane.router.replicas import Replicas
from deepinfer.fleet.convergence import keep_converging
from deepinfer.fleet.mirror import Mirror

ROUTER_REST_SECONDS = 0.1
"""After a pass: requests are relayed in the same loop."""
GARBAGE_THRESHOLDS = (50_000, 20, 20)
"""Of Python's collector. A pass over a large fleet makes as many objects, and nearly all die with it; by default they
would be walked through many times, now and then together with the whole view of the fleet, while all streams wait."""


async def keep_routing(mirror: Mirror, replicas: Replicas, keys: KeyRing, known: asyncio.Event) -> None:
    """`known` is set once the router has read what there is. Never returns."""

    async def route() -> None:
        fleet = await mirror.latest()
        keys.update(fleet)
        replicas.update(fleet)
        known.set()

    await keep_converging(route, mirror.listener(), rest_seconds=ROUTER_REST_SECONDS)
