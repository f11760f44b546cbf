"""Which fleet this is, whether the store can be relied upon, and a person's word that a new store is the right one."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from fastapi import APIRouter

from deepinfer.control_plane.management.dependencies import TheMirror
from deepinfer.control_plane.management.views import FleetIdentityView
from deepinfer.fleet import keys
from deepinfer.fleet.errors import StoreRefused, StoreUnavailable
from deepinfer.fleet.identity import confirmed, doubt_about
from deepinfer.fleet.snapshot import snapshot_of
from deepinfer.fleet.store import EtcdStore

router = APIRouter(prefix="/v1/fleet", tags=["fleet"])

_ALARM_SECONDS = 1.0
"""What is known without etcd is told no later than that."""


@router.get("")
async def get_fleet(mirror: TheMirror) -> FleetIdentityView:
    """Which fleet this is, what is wrong with its store, and which nodes wait for a person's word."""
    waiting = {node.name: node.fleet_trouble for node in mirror.offered.nodes if node.fleet_trouble}
    return FleetIdentityView(
        id=mirror.known,
        trouble=mirror.doubt,
        alarm=await _alarm(mirror.store),
        stale_since=mirror.stale_since.isoformat(timespec="seconds") if mirror.stale_since else None,
        waiting_nodes=waiting,
    )


@router.post("/confirm")
async def confirm_fleet(mirror: TheMirror) -> FleetIdentityView:
    """The store that answers now is the right one: this control plane and the nodes that wait go by it from now on.

    Engines that this store does not want are then stopped.
    """
    reading = await mirror.store.read(keys.FLEET)
    identity = reading.values.get(keys.IDENTITY)
    strangers = [n.fleet for n in snapshot_of(reading.values).nodes if doubt_about(identity, n.fleet)]
    await confirmed(mirror.store, [mirror.known, *strangers])
    await mirror.settled()
    return await get_fleet(mirror)


async def _alarm(store: EtcdStore) -> str:
    with suppress(StoreUnavailable, StoreRefused, TimeoutError):
        async with asyncio.timeout(_ALARM_SECONDS):
            return await store.alarm()
    return ""
