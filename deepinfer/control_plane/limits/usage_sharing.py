"""Gateways tell each other through the store what the limited keys have used.

Each writes its own counts, at most twice a second and only while they change, under a lease: what a gateway that died
had running is forgotten with it. They lie beside the fleet, so that who follows that is not woken. While the store is
away each gateway goes on with what it heard last; then a key may get its whole rate from each of them.

The bound, with N gateways: a key's requests and tokens never pass its limit by more than what the N - 1 others let in
within `SHARE_SECONDS` and the store's delay, and that is owed afterwards; its concurrent streams likewise. A gateway
that has just started knows nothing of the last minute.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from typing import Final

import msgspec

from deepinfer.control_plane.limits.key_usage import Counts
from deepinfer.control_plane.limits.ledger import NOTHING, Ledger
from deepinfer.etcd.backoff import Backoff
from deepinfer.fleet import keys
from deepinfer.fleet.errors import HistoryGone, LeaseLost, StoreConflict, StoreRefused, StoreUnavailable
from deepinfer.fleet.reading import Entry
from deepinfer.fleet.store import EtcdStore

SHARE_SECONDS: Final = 0.5
_LEASE_SECONDS: Final = 10

log = logging.getLogger(__name__)
_decoder = msgspec.json.Decoder(dict[str, Counts])


async def share_usage(store: EtcdStore, ledger: Ledger, name: str) -> None:
    """`name` is this gateway's, like no other's. Never returns."""
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(_tell(store, ledger, name), name="telling usage")
        tasks.create_task(_hear(store, ledger, name), name="hearing usage")


async def _tell(store: EtcdStore, ledger: Ledger, name: str) -> None:
    backoff = Backoff(first=0.2, longest=5.0)
    while True:
        await ledger.changed.wait()  # no lease is kept for a gateway that no limited key has used
        try:
            async with store.lease(_LEASE_SECONDS) as lease:
                while not lease.lost.is_set():
                    await ledger.changed.wait()
                    ledger.changed.clear()
                    told = msgspec.json.encode(ledger.here())
                    await store.commit({keys.usage(name): told}, lease=lease)
                    backoff.reset()
                    await asyncio.sleep(SHARE_SECONDS)
        except (StoreUnavailable, StoreRefused, StoreConflict, LeaseLost) as error:
            log.warning("other gateways cannot be told what keys have used: %s", error)
            ledger.changed.set()
            await backoff.pause()


async def _hear(store: EtcdStore, ledger: Ledger, name: str) -> None:
    backoff = Backoff(first=0.2, longest=5.0)
    while True:
        try:
            reading = await store.read(keys.USAGE)
            there = {_gateway(key): entry for key, entry in reading.entries.items()}
            for gone in ledger.known_gateways() - there.keys():
                ledger.gone(gone)
            for gateway, entry in there.items():
                if gateway != name:
                    ledger.found(gateway, _counts(gateway, entry), asyncio.get_running_loop().time())
            changes = store.watch(keys.USAGE, reading.revision + 1, lambda connected: None)
            async with contextlib.aclosing(changes):
                async for change in changes:
                    backoff.reset()
                    for key, changed in change.entries.items():
                        _take(ledger, name, _gateway(key), changed)
        except HistoryGone:
            continue
        except (StoreUnavailable, StoreRefused) as error:
            log.warning("what keys use at other gateways cannot be heard: %s", error)
            await backoff.pause()


def _gateway(key: str) -> str:
    return key.removeprefix(keys.USAGE)


def _take(ledger: Ledger, own: str, gateway: str, entry: Entry | None) -> None:
    if entry is None:
        ledger.gone(gateway)
    elif gateway != own:
        ledger.told(gateway, _counts(gateway, entry), asyncio.get_running_loop().time())


def _counts(gateway: str, entry: Entry) -> Mapping[str, Counts]:
    try:
        return _decoder.decode(entry.value)
    except msgspec.MsgspecError:
        log.warning("%s tells its usage in a way that this version does not know", gateway)
        return NOTHING
