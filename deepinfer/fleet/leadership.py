"""One leader at a time, elected by a lease in etcd.

At most one *acts* only because of the fence: a leader that was cut off, or whose process was stopped, may believe in
itself a moment too long, so every one of its commits must carry `also_unchanged=leadership.fence`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

from deepinfer.etcd.backoff import Backoff
from deepinfer.fleet import keys
from deepinfer.fleet.errors import LeaseLost, StoreConflict, StoreRefused, StoreUnavailable
from deepinfer.fleet.store import EtcdStore, Lease

log = logging.getLogger(__name__)

TTL_SECONDS = 4
"""etcd ends a lease up to half a second late, so a dead leader is followed within 5 s."""
RENEWALS = 6
"""In that time, so that a leader that stands still for 3 s leads on."""


@dataclass(frozen=True, slots=True)
class Leadership:
    """`revision` is where the leader's key was written: once in a leadership, so it names this very one."""

    name: str
    revision: int

    @property
    def fence(self) -> Mapping[str, int]:
        """For `commit(also_unchanged=...)`: true while this leadership lasts, and never again after it."""
        return {keys.LEADER: self.revision}


async def lead(
    store: EtcdStore,
    name: str,
    work: Callable[[Leadership], Coroutine[Any, Any, None]],
    *,
    ttl_seconds: int = TTL_SECONDS,
) -> None:
    """Campaign, run `work` while leading, cancel it when the leadership ends, and campaign again; for ever.

    Returns when `work` does, and raises what it raises; after trouble with the store it campaigns again.
    """
    backoff = Backoff()
    finished = False
    while not finished:
        try:
            await _wait_for_vacancy(store)
            async with store.lease(ttl_seconds, RENEWALS) as lease:
                leadership = await _claim(store, name, lease)
                log.info("%s leads from revision %d on", name, leadership.revision)
                backoff.reset()
                finished = await _ran_to_its_end(work(leadership), lease.lost.wait(), _until_taken(store, leadership))
                log.info("%s leads no longer", name)
        except (StoreConflict, LeaseLost) as error:
            log.info("%s does not lead: %s", name, error)
        except (StoreUnavailable, StoreRefused) as error:
            log.warning("%s cannot campaign: %s", name, error)
            await backoff.pause()


async def _wait_for_vacancy(store: EtcdStore) -> None:
    """Woken by changes of the key, never by a clock."""
    async with contextlib.aclosing(store.changes(keys.LEADER)) as revisions:
        async for _ in revisions:
            if keys.LEADER not in (await store.read(keys.LEADER)).entries:
                return


async def _claim(store: EtcdStore, name: str, lease: Lease) -> Leadership:
    """Raises `StoreConflict` if somebody was faster. The lease's number makes the value ours beyond doubt."""
    value = json.dumps({"name": name, "lease": f"{lease.id:x}"}).encode()
    return Leadership(name, await store.commit({keys.LEADER: value}, also_unchanged={keys.LEADER: 0}, lease=lease))


async def _until_taken(store: EtcdStore, leadership: Leadership) -> None:
    """Returns when the leader's key is not the one we wrote: deleted by hand, or expired without our knowing."""
    async with contextlib.aclosing(store.changes(keys.LEADER)) as revisions:
        async for _ in revisions:
            if (await store.read(keys.LEADER)).mod_revision(keys.LEADER) != leadership.revision:
                return


async def _ran_to_its_end(work: Coroutine[Any, Any, None], *deposed: Coroutine[Any, Any, object]) -> bool:
    """Run `work` until one of `deposed` returns; False if it had to be cancelled."""
    working = asyncio.create_task(work)
    watching = [asyncio.create_task(sign) for sign in deposed]
    try:
        done, _ = await asyncio.wait({working, *watching}, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        return working in done
    finally:
        for task in (working, *watching):
            task.cancel()
        await asyncio.gather(working, *watching, return_exceptions=True)
