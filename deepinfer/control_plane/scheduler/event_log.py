"""Events in the store. They end by themselves, with a lease that many of them share."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Iterable
from datetime import UTC, datetime

from deepinfer.control_plane.scheduler.happenings import Happening
from deepinfer.fleet import keys
from deepinfer.fleet.errors import DeepinferError
from deepinfer.fleet.event import Event
from deepinfer.fleet.store import EtcdStore, Lease
from deepinfer.fleet.told_time import told_time

log = logging.getLogger(__name__)

KEPT_SECONDS = 3600
NEW_LEASE_EVERY_SECONDS = 600.0


class EventLog:
    """Nothing depends on it: what cannot be told is logged and forgotten."""

    def __init__(self, store: EtcdStore) -> None:
        self._store = store
        self._lease: Lease | None = None
        self._taken_at = 0.0
        self._count = itertools.count()

    async def write(self, happened: Iterable[Happening]) -> None:
        records = dict(self._recorded(happened))
        if not records:
            return
        try:
            await self._store.commit(records, lease=await self._current_lease())
        except DeepinferError as error:
            log.warning("%d events could not be told: %s", len(records), error)
            self._lease = None

    def _recorded(self, happened: Iterable[Happening]) -> Iterable[tuple[str, bytes | None]]:
        """Keys sort by time."""
        now = datetime.now(UTC)
        at = told_time(now, "milliseconds")
        for each in happened:
            log.info("%s: %s: %s", each.about, each.reason, each.message)
            event = Event(about=each.about, at=at, reason=each.reason, message=each.message)
            yield keys.event(each.about, f"{now:%Y%m%d%H%M%S%f}-{next(self._count) % 1000:03d}"), event.to_json()

    async def _current_lease(self) -> Lease:
        now = asyncio.get_running_loop().time()
        if self._lease is None or now - self._taken_at >= NEW_LEASE_EVERY_SECONDS:
            self._lease, self._taken_at = await self._store.expiry(KEPT_SECONDS), now
        return self._lease
