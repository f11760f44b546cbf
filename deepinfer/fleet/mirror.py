"""One view of the whole store for everybody in a process: listed once, then kept up by a watch.

While the store is away the view stays, and says since when it is stale. After every break everything is listed anew,
for the store that comes back may be another one: then the old view stays, nothing is written, and a person must speak.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from datetime import UTC, datetime

from deepinfer.etcd.backoff import Backoff
from deepinfer.fleet import keys
from deepinfer.fleet.cache import Cache
from deepinfer.fleet.errors import AnotherFleet, HistoryGone, StoreConflict, StoreRefused, StoreUnavailable
from deepinfer.fleet.identity import doubt_about, told_identity
from deepinfer.fleet.reading import Changes, Reading
from deepinfer.fleet.snapshot import Snapshot, View
from deepinfer.fleet.store import EtcdStore

log = logging.getLogger(__name__)

RESYNC_SECONDS = 300.0
"""Everything is listed anew this often at least: whatever a watch can get wrong is wrong no longer than that."""
PATIENCE_SECONDS = 2.0
"""How long a write of this process may take to come back by the watch."""
LONGEST_PATIENCE_SECONDS = 10.0
"""The same, for somebody who wants to see what they have just written."""
NO_KEYS: Mapping[str, int] = {}


class Mirror:
    """Use `async with Mirror.following(store) as mirror`."""

    def __init__(self, store: EtcdStore) -> None:
        self.store = store
        self.known = ""  # the id of the fleet in view
        self.doubt = ""  # why the store that answers is not taken for this fleet's
        self.stale_since: datetime | None = datetime.now(UTC)
        self._shown = self._followed = Cache()
        self._away = True
        self._conflict_at = -1  # the view's revision at the last conflict
        self._until_listing: asyncio.Timeout | None = None
        self._listeners: list[asyncio.Event] = []
        self._moved = asyncio.Event()  # replaced by another one each time

    @classmethod
    @asynccontextmanager
    async def following(cls, store: EtcdStore) -> AsyncIterator[Mirror]:
        """A mirror that is kept up while the block runs."""
        mirror = cls(store)
        async with asyncio.TaskGroup() as tasks:
            keeping_up = tasks.create_task(mirror.follow(), name="mirror")
            try:
                yield mirror
            finally:
                keeping_up.cancel()

    @property
    def revision(self) -> int:
        """0 until the store was listed for the first time."""
        return self._shown.revision

    @property
    def fleet(self) -> Snapshot:
        """What was last known."""
        return self._shown.fleet

    @property
    def offered(self) -> Snapshot:
        """What the store says that answers now, be it this fleet's or not."""
        return self._followed.fleet

    @property
    def reading(self) -> Reading:
        """What `fleet` was made from, if nothing was awaited between the two."""
        return self._shown.reading

    def listener(self) -> asyncio.Event:
        """An event that is set after every change of the view, or of what is known of the store."""
        event = asyncio.Event()
        self._listeners.append(event)
        return event

    def forget(self, listener: asyncio.Event) -> None:
        """It is not set any more."""
        self._listeners.remove(listener)

    async def reaches(self, revision: int, seconds: float = PATIENCE_SECONDS) -> None:
        """Wait until the view is of `revision` or later. Raises `StoreUnavailable`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self.revision < revision or not self.revision:
                    await self._moved.wait()
                return
        raise StoreUnavailable(
            f"What is known of the store is of revision {self.revision}, older than {revision}, and etcd tells nothing "
            "newer; try again soon."
        )

    async def latest(self) -> Snapshot:
        """The fleet with all that this process wrote; as last known while the store is away.

        Raises `StoreUnavailable` where nothing is known, or something older than what was written here.
        """
        if self.stale_since is None or not self.revision:
            try:
                await self.reaches(self.store.written, LONGEST_PATIENCE_SECONDS)
            except StoreUnavailable:
                if self.stale_since is None:  # it is there, and late: a view without the caller's own write would lie
                    raise
        if not self.revision:
            raise StoreUnavailable("serve has not read the store yet; its log says why. Try again soon.")
        return self.fleet

    async def becomes(self, *, doubted: bool) -> None:
        """Wait until the store that answers is taken for another fleet's, or is so no longer."""
        while bool(self.doubt) is not doubted:
            await self._moved.wait()

    async def settled(self) -> None:
        """Once what this process wrote has come back, whatever it makes of the store. Waits a moment at most."""
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_SECONDS):
                while self._followed.revision < self.store.written:
                    await self._moved.wait()

    async def view(self) -> View:
        """For a decision: with all that this process wrote, or an error."""
        if self.doubt:
            raise AnotherFleet(self.doubt)
        await self.reaches(self.store.written)
        return View(self.reading, self.fleet)

    async def read(self, *prefixes: str) -> Reading:
        """From etcd itself, for a write that must know the newest."""
        if self.doubt:
            raise AnotherFleet(self.doubt)
        return await self.store.read(*prefixes)

    async def commit(
        self,
        puts: Mapping[str, bytes | None],
        *,
        if_unchanged: Reading | None = None,
        also_unchanged: Mapping[str, int] = NO_KEYS,
    ) -> int:
        """As the store's, but never into another fleet's, nor before it is known which one this is."""
        if self.doubt:
            raise AnotherFleet(self.doubt)
        await self.reaches(0)
        same_fleet = {keys.IDENTITY: self._shown.mod_revision(keys.IDENTITY)}
        try:
            return await self.store.commit(
                puts, if_unchanged=if_unchanged, also_unchanged={**also_unchanged, **same_fleet}
            )
        except StoreConflict:
            if self._conflict_at == self.revision:  # it was told of no change, and yet there is one
                self._list_anew()
            self._conflict_at = self.revision
            raise

    async def follow(self) -> None:
        """Never returns."""
        backoff = Backoff()
        while True:
            try:
                self._take(await self.store.read(keys.FLEET))
                backoff.reset()
                await self._keep_up()
            except HistoryGone as gone:
                log.warning("%s Listing everything anew.", gone)
            except (StoreUnavailable, StoreRefused) as error:
                self._is_away(str(error))
            await backoff.pause()

    async def _keep_up(self) -> None:
        """Until it is time to list everything anew."""
        changes = self.store.watch(keys.FLEET, self._followed.revision + 1, self._connected)
        try:
            async with asyncio.timeout(RESYNC_SECONDS) as self._until_listing, aclosing(changes):
                async for each in changes:
                    if not self._away:
                        self._apply(each)
        except TimeoutError:
            log.debug("listing the store anew")
        finally:
            self._until_listing = None

    def _connected(self, is_connected: bool) -> None:
        if not is_connected:
            self._is_away("its watch broke")
        elif self._away:
            self._list_anew()

    def _list_anew(self) -> None:
        if self._until_listing is not None and not self._until_listing.expired():
            self._until_listing.reschedule(asyncio.get_running_loop().time())

    def _is_away(self, why: str) -> None:
        if not self._away:
            log.warning("the store is away (%s); going on with what was known", why)
        self._away = True
        if self.stale_since is None:
            self.stale_since = datetime.now(UTC)
            self._tell()

    def _take(self, reading: Reading) -> None:
        if reading.revision < self._followed.revision:
            self.store.written = 0  # that history is gone
        self._followed = Cache(reading.entries, reading.revision, self._shown)
        self._away = False
        self._judge()

    def _apply(self, changes: Changes) -> None:
        if keys.IDENTITY in changes.entries:
            self._followed = self._followed.after(changes)  # what is shown may have to stay as it was
        elif changes.revision <= self._followed.revision:
            return
        else:
            self._followed.apply(changes)
        self._judge()

    def _judge(self) -> None:
        """Show what is followed, unless it is another fleet's."""
        identity = self._followed.value(keys.IDENTITY)
        doubt = doubt_about(identity, self.known)
        if doubt:
            if doubt != self.doubt:
                log.error("%s Going on with what was known; nothing is written.", doubt)
            self.stale_since = self.stale_since or datetime.now(UTC)
        else:
            found = told_identity(identity)
            self.known = found.id if found else ""
            self._shown, self.stale_since = self._followed, None
        self.doubt = doubt
        self._tell()

    def _tell(self) -> None:
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()
        for listener in self._listeners:
            listener.set()
