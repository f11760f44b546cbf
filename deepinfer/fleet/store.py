"""The fleet's state in etcd: read it whole at one revision, commit if unchanged, hear that something changed.

The only module that knows the etcd client. Errors leave it as `StoreConflict` (nothing was written: look again),
`StoreUnavailable` (a write may or may not have been applied: look again later) and their kin in `errors.py`.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from deepinfer.etcd.access import OPEN, Access
from deepinfer.etcd.backoff import Backoff
from deepinfer.etcd.client import Client, Outcome, Transaction
from deepinfer.etcd.errors import (
    Ambiguous,
    Compacted,
    Denied,
    EtcdError,
    HistoryReplaced,
    LeaseGone,
    NoSpace,
    Unavailable,
)
from deepinfer.etcd.lease import RENEWALS, Lease
from deepinfer.etcd.snapshot import Piece
from deepinfer.etcd.watch import Batch, nobody_asks
from deepinfer.fleet import keys
from deepinfer.fleet.errors import (
    HistoryGone,
    LeaseLost,
    StoreConflict,
    StoreDenied,
    StoreFull,
    StoreRefused,
    StoreUnavailable,
)
from deepinfer.fleet.etcd_alarm import alarm_told
from deepinfer.fleet.reading import Changes, Entry, Reading
from deepinfer.fleet.snapshot import View, snapshot_of

__all__ = ["EtcdStore", "Lease", "Reading"]

log = logging.getLogger(__name__)

MOST_OPERATIONS = 100  # a transaction; etcd's own limit is 128 compares and 128 operations
MOST_BYTES = 1 << 20  # a transaction; etcd's own limit is 1.5 MiB


@dataclass(frozen=True, slots=True)
class _Batch:
    """One transaction's share of a commit."""

    puts: Mapping[str, bytes | None]
    unchanged: Mapping[str, int]
    lease: int = 0

    def transaction(self) -> Transaction:
        return Transaction(
            unchanged=[(key.encode(), revision) for key, revision in self.unchanged.items()],
            puts=[(key.encode(), value) for key, value in self.puts.items() if value is not None],
            deletes=[key.encode() for key, value in self.puts.items() if value is None],
            lease=self.lease,
        )


NOTHING: Mapping[str, int] = {}


class EtcdStore:
    """Use `async with EtcdStore.connect(endpoints) as store`."""

    def __init__(self, client: Client, endpoints: Sequence[str]) -> None:
        self._client = client
        self._endpoints = ", ".join(endpoints)
        self.written = 0
        """The revision of the newest commit that went through this store: no older view may be acted upon."""

    @classmethod
    @contextlib.asynccontextmanager
    async def connect(
        cls, endpoints: Sequence[str], *, access: Access = OPEN, timeout: float = 3.0
    ) -> AsyncIterator[EtcdStore]:
        """Raises `StoreUnavailable` if nobody answers within `timeout`, which is also every later call's deadline."""
        async with Client(endpoints, access=access, timeout=timeout) as client:
            store = cls(client, endpoints)
            await store.server_version()
            yield store

    async def close(self) -> None:
        await self._client.close()

    async def server_version(self) -> str:
        """ "" where etcd tells it to root alone, as newer ones do."""
        with self._errors_named():
            try:
                return await self._client.server_version()
            except Denied:
                await self._client.get(keys.LEADER.encode())  # raises, too, if it is the login that is wrong
                return ""

    async def alarm(self) -> str:
        """What etcd has raised an alarm about, and the next step; "" if nothing."""
        with self._errors_named():
            return alarm_told(await self._client.alarms())

    async def snapshot(self) -> AsyncGenerator[Piece, None]:
        """All that etcd holds, other users' keys included, in pieces. Use it in `contextlib.aclosing`."""
        with self._errors_named():
            async with contextlib.aclosing(self._client.snapshot()) as pieces:
                async for piece in pieces:
                    yield piece

    async def read(self, *prefixes: str) -> Reading:
        """All keys under these, all at one revision, however many there are."""
        with self._errors_named():
            while True:
                with contextlib.suppress(Compacted):  # while paging: that revision is gone, a newer one is as good
                    found, revision = await self._client.read_prefixes(*map(str.encode, prefixes))
                    break
        return Reading(revision, {_text(kv.key): Entry(kv.value, kv.mod_revision) for kv in found}, prefixes)

    async def view(self) -> View:
        """The whole fleet, read now."""
        reading = await self.read(keys.FLEET)
        return View(reading, snapshot_of(reading.values))

    async def commit(
        self,
        puts: Mapping[str, bytes | None],
        *,
        if_unchanged: Reading | None = None,
        also_unchanged: Mapping[str, int] = NOTHING,
        lease: Lease | None = None,
    ) -> int:
        """Write (None deletes) if the touched keys are as in the reading, the others at their mod_revision (0: absent).

        Up to 100 keys are one transaction; more become several, in order: it must be safe to stop after each, for an
        error leaves the earlier ones written. Returns the store's revision after the last one.
        """
        if lease is not None and not lease.seconds_left:
            raise LeaseLost
        revision = if_unchanged.revision if if_unchanged else 0
        for part in _parts_of(puts):
            touched = {key: if_unchanged.mod_revision(key) for key in part} if if_unchanged else {}
            batch = _Batch(part, {**touched, **also_unchanged}, lease.id if lease else 0)
            with self._errors_named():
                outcome = await self._commit_batch(batch)
            revision = outcome.revision
            # Nothing else comes back to who follows the fleet.
            if outcome.changed and any(key.startswith(keys.FLEET) for key in part):
                self.written = max(self.written, revision)
        return revision

    @contextlib.asynccontextmanager
    async def lease(self, ttl_seconds: int, renewals: int = RENEWALS) -> AsyncIterator[Lease]:
        """Kept alive while the block runs, revoked at its end. The block must watch `lease.lost` itself."""
        async with contextlib.AsyncExitStack() as stack:
            with self._errors_named():
                lease = await stack.enter_async_context(self._client.lease(ttl_seconds, renewals))
            yield lease

    async def expiry(self, ttl_seconds: int) -> Lease:
        """A lease for what is to end by itself."""
        with self._errors_named():
            return await self._client.expiry(ttl_seconds)

    async def changes(self, prefix: str, connected: Callable[[bool], None] = nobody_asks) -> AsyncGenerator[int, None]:
        """Yield a revision once the watch is set up, and after every change under `prefix`; for ever, over any failure.

        A reason to look, no more: one item may stand for many changes. `connected` hears of each break and its end.
        Use it in `contextlib.aclosing`.
        """
        backoff = Backoff(first=0.5, longest=10.0)
        while True:
            try:
                async with contextlib.aclosing(self._client.watch(prefix.encode(), connected=connected)) as batches:
                    async for batch in batches:
                        backoff.reset()
                        yield batch.revision
            except (Compacted, HistoryReplaced) as error:
                log.warning("the watch of %s cannot go on: %s; looking at everything anew", prefix, error)
            except Denied as error:  # a password may be rotated here later than there: as good as no store until then
                log.warning("etcd at %s denies the watch of %s: %s; trying again", self._endpoints, prefix, error)
                await backoff.pause()
            except EtcdError as error:
                raise StoreRefused(f"etcd at {self._endpoints} refuses to watch {prefix}: {error}.") from error

    async def watch(self, prefix: str, start: int, connected: Callable[[bool], None]) -> AsyncGenerator[Changes, None]:
        """Every change under `prefix` from the revision `start` on; `connected` hears of each break and its end.

        Raises `HistoryGone` when the only way on is to read everything anew, `StoreDenied` when it may not
        be followed. Use it in `contextlib.aclosing`.
        """
        batches = self._client.watch(prefix.encode(), start=start, connected=connected)
        with self._errors_named():
            try:
                async with contextlib.aclosing(batches):
                    async for batch in batches:
                        yield _changes(batch)
            except (Compacted, HistoryReplaced) as error:
                raise HistoryGone(f"The watch of {prefix} cannot go on: {error}.") from error

    async def _commit_batch(self, batch: _Batch) -> Outcome:
        try:
            outcome = await self._client.transact(batch.transaction())
        except Ambiguous as lost:
            applied_at = await self._revision_if_applied(batch)
            if applied_at is None:
                raise
            log.info("found a commit applied although its answer was lost (%s)", lost)
            return Outcome(applied=True, revision=applied_at, changed=True)
        if not outcome.applied:
            raise StoreConflict(f"Somebody else changed {_differing(batch, outcome)} first; nothing was written.")
        return outcome

    async def _revision_if_applied(self, batch: _Batch) -> int | None:
        """The revision at which these very values were written; None if they are not there (yet) or cannot be read.

        Who wrote them is told by the values alone: where it matters which of two writers won, their values must differ.
        """
        revisions = set()
        for key, value in batch.puts.items():
            try:
                found = await self._client.get(key.encode())
            except EtcdError:
                return None
            if found is None or value is None:
                if found is not None or value is not None:
                    return None
                continue
            if (found.value, found.lease) != (value, batch.lease) or found.mod_revision <= batch.unchanged.get(key, 0):
                return None
            revisions.add(found.mod_revision)
        return revisions.pop() if len(revisions) == 1 else None  # one transaction writes at one revision

    @contextlib.contextmanager
    def _errors_named(self) -> Iterator[None]:
        """The client's errors as the fleet's, with the next step."""
        try:
            yield
        except LeaseGone as error:
            raise LeaseLost from error
        except NoSpace as error:
            raise StoreFull from error
        except Denied as error:
            raise StoreDenied(
                f"etcd at {self._endpoints} denies this ({error}); see username and password_file in [etcd]."
            ) from error
        except Ambiguous as error:
            raise StoreUnavailable(f"etcd did not say whether it wrote ({error}); read again to find out.") from error
        except Unavailable as error:
            raise StoreUnavailable(
                f"No etcd answers at {self._endpoints} ({error}); start one with ./start-etcd.sh or name one that runs."
            ) from error
        except EtcdError as error:
            raise StoreRefused(f"etcd at {self._endpoints} refused: {error}.") from error


def is_one_transaction(puts: Mapping[str, bytes | None]) -> bool:
    """Whether a commit of these is seen by everybody at once."""
    return len(list(_parts_of(puts))) <= 1


def _text(key: bytes) -> str:
    """Ours are text. One that is not was put there by somebody else, and must not be in our way."""
    return key.decode(errors="backslashreplace")


def _changes(batch: Batch) -> Changes:
    entries = {
        _text(change.key): None if change.value is None else Entry(change.value, change.mod_revision)
        for change in batch.changes
    }
    return Changes(entries, batch.revision)


def _parts_of(puts: Mapping[str, bytes | None]) -> Iterator[dict[str, bytes | None]]:
    """In order, each small enough for one transaction."""
    part: dict[str, bytes | None] = {}
    size = 0
    for key, value in puts.items():
        added = len(key) + len(value or b"")
        if part and (len(part) == MOST_OPERATIONS or size + added > MOST_BYTES):
            yield part
            part, size = {}, 0
        part[key] = value
        size += added
    if part:
        yield part


def _differing(batch: _Batch, outcome: Outcome) -> str:
    now = {_text(kv.key): kv.mod_revision for kv in outcome.found}
    keys = sorted(key for key, revision in batch.unchanged.items() if now.get(key, 0) != revision)
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
