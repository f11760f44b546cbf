"""What the store says of one node, kept together with what the node itself writes, so that most passes read nothing.

It is doubted, and then read anew, when a watch told of a change or broke, when a write failed, over another connection,
and after a while anyway: whatever a watch can get wrong is wrong no longer than that. Nobody else writes the statuses
of a node that is there, so nothing watches them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

from deepinfer.agent.engine_folders import is_placement_id
from deepinfer.agent.membership import Membership
from deepinfer.agent.placement_note import PlacementNote
from deepinfer.agent.plan import Wanted
from deepinfer.fleet import keys
from deepinfer.fleet.pipeline import Layout
from deepinfer.fleet.reading import Reading
from deepinfer.fleet.resources import ReplicaStatus
from deepinfer.fleet.snapshot import snapshot_of
from deepinfer.fleet.store import EtcdStore

_TRUSTED_SECONDS = 15.0  # no pass that nothing woke comes sooner, so each of those reads

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Known:
    """The store at one moment, as far as it concerns this node."""

    wanted: Wanted
    statuses: Mapping[str, ReplicaStatus]  # by id, readable ones
    told: Mapping[str, bytes]  # by key: the statuses as they lie there
    layouts: tuple[Layout, ...] = ()  # of the whole fleet: few, and seldom another
    identity: int = 0  # the mod_revision of the fleet's


class OwnKeys:
    """One node's placements and statuses, in a store that is its fleet's."""

    def __init__(self, node: str, membership: Membership, note: PlacementNote | None = None) -> None:
        self.known: Known | None = None  # as read last, however long ago
        self._node = node
        self._membership = membership
        self._note = note  # None: nothing is remembered beyond this run
        self._is_recalled = False
        self._store: EtcdStore | None = None
        self._trusted_until = 0.0

    def doubt(self) -> None:
        """Read before `known` is used again."""
        self._trusted_until = 0.0

    async def read(self, store: EtcdStore) -> Known:
        """Raises `AnotherFleet` if this store is not to be obeyed."""
        now = asyncio.get_running_loop().time()
        if self.known is not None and self._store is store and now < self._trusted_until:
            return self.known
        self._store, self._trusted_until = store, now + _TRUSTED_SECONDS  # what is told from here on may be newer
        with self._doubted_on_failure():
            ours = (keys.placement(self._node, ""), keys.statuses(self._node), keys.LAYOUTS)
            reading = await store.read(*ours, keys.IDENTITY)
            self._membership.check(reading.values.get(keys.IDENTITY))
            self.known = _known(reading, self._node)
        if self._note is not None:
            self._note.write(self._membership.fleet, self.known.wanted.placements)
        return self.known

    def recall(self) -> None:
        """Know what an earlier agent of this node read last, if nothing was read yet."""
        if self._note is None or self.known is not None or self._is_recalled:
            return
        self._is_recalled = True
        noted = self._note.read(self._membership.fleet)
        if noted is not None:
            log.warning("going by the %d placements that were noted here last", len(noted))
            good = tuple(p for p in noted if p.node == self._node and is_placement_id(p.id))
            self.known = Known(Wanted(good, is_recalled=True), {}, {})

    async def tell(self, store: EtcdStore, statuses: Collection[ReplicaStatus], gone: Collection[str]) -> None:
        """Write what is not there yet, and remove the statuses of `gone`; what was read stays true thereby.

        Raises `AnotherFleet` as `read` does, and `StoreConflict` if it became another fleet's after it was read.
        """
        known = await self.read(store)
        ours = {keys.status(self._node, status.id): status.to_json() for status in statuses}
        removed = [keys.status(self._node, placement_id) for placement_id in gone]
        puts = {**{k: v for k, v in ours.items() if known.told.get(k) != v}, **dict.fromkeys(removed)}
        if not puts:
            return
        with self._doubted_on_failure():
            await store.commit(puts, also_unchanged={keys.IDENTITY: known.identity})
        told = {key: value for key, value in {**known.told, **ours}.items() if key not in removed}
        by_id = {**known.statuses, **{status.id: status for status in statuses}}
        self.known = replace(
            known,
            wanted=replace(known.wanted, reported=_ids(told, self._node)),
            statuses={placement_id: status for placement_id, status in by_id.items() if placement_id not in gone},
            told=told,
        )

    @contextmanager
    def _doubted_on_failure(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.doubt()
            raise


def _known(reading: Reading, node: str) -> Known:
    fleet, ours = snapshot_of(reading.values), keys.placement(node, "")
    good = tuple(p for p in fleet.placements if p.node == node and is_placement_id(p.id))
    unreadable = {key.removeprefix(ours) for key in fleet.unreadable if key.startswith(ours)}
    unreadable |= {p.id for p in fleet.placements} - {p.id for p in good}
    for key in fleet.unreadable:
        log.warning("%s cannot be understood and is left as it is: %s", key, fleet.unreadable[key])
    told = {key: value for key, value in reading.values.items() if key.startswith(keys.statuses(node))}
    return Known(
        wanted=Wanted(good, frozenset(unreadable), _ids(told, node)),
        statuses={status.id: status for status in fleet.statuses},
        told=told,
        layouts=fleet.layouts,
        identity=reading.mod_revision(keys.IDENTITY),
    )


def _ids(told: Mapping[str, bytes], node: str) -> frozenset[str]:
    return frozenset(key.removeprefix(keys.statuses(node)) for key in told)
