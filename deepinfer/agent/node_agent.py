"""One pass of the agent: read what is wanted here, look at what runs, act on the difference, report.

Level-triggered, and it goes on without the store: then the placements read last are still made so, and what there is
to report waits.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from deepinfer.agent.engine_folders import is_placement_id
from deepinfer.agent.launching import Launcher, Mark
from deepinfer.agent.membership import Membership
from deepinfer.agent.plan import Forget, Hold, Situation, Start, Stop, Wait, Wanted, plan
from deepinfer.agent.replica import Replica
from deepinfer.agent.workshop import ModelFiles, Workshop
from deepinfer.fleet import keys
from deepinfer.fleet.config import WorkerConfig
from deepinfer.fleet.errors import AnotherFleet, StoreFull, StoreUnavailable
from deepinfer.fleet.resources import Intent, ReplicaStatus
from deepinfer.fleet.snapshot import Snapshot, snapshot_of
from deepinfer.fleet.spec import Backend
from deepinfer.fleet.store import EtcdStore

_MESSAGE_SECONDS = 1.0  # progress messages reach the store this often at most
_STORE_AGAIN_SECONDS = 2.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Known:
    """One reading of the store, as far as it concerns this node."""

    wanted: Wanted
    statuses: Mapping[str, ReplicaStatus]  # by id, readable ones
    status_entries: Mapping[str, bytes]


class NodeAgent:
    """Owns the node's replicas. `tasks` owns their lives."""

    def __init__(
        self,
        node: str,
        config: WorkerConfig,
        engines: Path,
        launchers: Mapping[Backend, Launcher],
        model_files: ModelFiles,
        *,
        membership: Membership,
    ) -> None:
        self.changed = asyncio.Event()
        self.passed = asyncio.Event()  # set after every pass
        self._node = node
        self._membership = membership
        self._workshop = Workshop(node, config, engines, launchers, model_files, self._in_charge, self._told)
        self._replicas: dict[str, Replica] = {}
        self._known: Known | None = None
        self._closed: tuple[str, ...] = ()
        self._store_lost = False
        self._alarm: asyncio.TimerHandle | None = None

    @property
    def holds(self) -> tuple[str, ...]:
        """Every placement that is to serve here, or of which something is still here."""
        wanted = self._known.wanted.placements if self._known else ()
        return tuple(sorted({p.id for p in wanted if p.intent is Intent.SERVE} | self._replicas.keys()))

    def close(self, reasons: tuple[str, ...]) -> None:
        """Start nothing new, for these reasons; without any: again."""
        self._closed = reasons
        self.changed.set()

    async def adopt(self, launcher: Launcher, tasks: asyncio.TaskGroup) -> None:
        """Take over what an earlier agent left: whole engines are kept, remains of broken ones are ended."""
        newest_first = sorted(await launcher.running(), key=lambda engine: -engine.mark.epoch)
        for engine in newest_first:
            placement_id = engine.mark.placement
            known = self._replicas.get(placement_id)
            if known is not None and known.mark is None:
                continue  # it is about to start; then it finds this one
            if engine.is_whole and known is None:
                log.info("adopted %s (epoch %d), process %d", placement_id, engine.mark.epoch, engine.pid)
                self._replicas[placement_id] = Replica(placement_id, self._workshop)
                self._replicas[placement_id].adopt(engine, tasks)
            else:
                log.warning("ending what an earlier run left of %s (process %d)", engine.mark, engine.pid)
                await engine.kill()

    async def converge(self, store: EtcdStore, tasks: asyncio.TaskGroup) -> None:
        """One pass. Without the store it acts on the last reading, and looks again soon."""
        await self._pass(store, tasks)
        self.passed.set()

    async def _pass(self, store: EtcdStore, tasks: asyncio.TaskGroup) -> None:
        try:
            known = await self._read(store)
        except (StoreUnavailable, AnotherFleet) as error:
            self._store_is_lost(error)
            self._act(tasks)
            return
        self._known = known
        forgotten = self._act(tasks)
        try:
            await self._report(store, known, forgotten)
        except (StoreUnavailable, StoreFull) as error:
            self._store_is_lost(error)
        else:
            self._store_lost = False

    async def stop_all(self, announce: Callable[[str], None], hurry: asyncio.Event) -> None:
        """End every engine of this node; `hurry` cuts the wait for running requests short."""
        for replica in self._replicas.values():
            announce(replica.id)
            replica.stop(hurry=hurry.is_set())
        async with asyncio.TaskGroup() as tasks:
            hurrying = tasks.create_task(self._hurry_all(hurry))
            for replica in self._replicas.values():
                await replica.ended()
            hurrying.cancel()

    async def let_go(self) -> None:
        """Stop looking after the engines; they go on and are adopted later."""
        for replica in self._replicas.values():
            await replica.let_go()

    async def report(self, store: EtcdStore) -> None:
        """Only tell how things stand."""
        await self._report(store, await self._read(store), set())

    async def _hurry_all(self, hurry: asyncio.Event) -> None:
        await hurry.wait()
        for replica in self._replicas.values():
            replica.stop(hurry=True)

    async def _read(self, store: EtcdStore) -> Known:
        """Raises `AnotherFleet` if this store is not to be obeyed."""
        placements = (await store.read(keys.placement(self._node, ""))).values
        statuses = (await store.read(keys.status(self._node, ""))).values
        # Last: a store that was exchanged before the placements were read still tells so.
        self._membership.check((await store.read(keys.IDENTITY)).values.get(keys.IDENTITY))
        return _known(snapshot_of({**placements, **statuses}), self._node, statuses)

    def _act(self, tasks: asyncio.TaskGroup) -> set[str]:
        """Start, stop and forget; answers the ids that are to have no status any more."""
        loop = asyncio.get_running_loop()
        self._remember_counts()
        seen = {placement_id: replica.seen for placement_id, replica in self._replicas.items()}
        wanted = self._known.wanted if self._known else None
        forgotten = set()
        for action in plan(Situation(loop.time(), wanted, seen, self._closed)):
            match action:
                case Start(placement):
                    self._replica(placement.id).start(placement, tasks)
                case Hold(placement, reasons):
                    self._replica(placement.id).hold(placement, reasons)
                case Stop(placement_id):
                    log.info("stopping %s", placement_id)
                    self._replicas[placement_id].stop()
                case Forget(placement_id):
                    self._forget(placement_id)
                    forgotten.add(placement_id)
                case Wait(_, until):
                    self._wake_at(until)
        return forgotten

    def _replica(self, placement_id: str) -> Replica:
        if placement_id not in self._replicas:
            last = self._known.statuses.get(placement_id) if self._known else None
            self._replicas[placement_id] = Replica(placement_id, self._workshop, last)
        return self._replicas[placement_id]

    def _in_charge(self) -> frozenset[Mark]:
        return frozenset(replica.mark for replica in self._replicas.values() if replica.mark is not None)

    def _remember_counts(self) -> None:
        if self._known is not None:
            for placement_id, replica in self._replicas.items():
                replica.remember(self._known.statuses.get(placement_id))

    def _forget(self, placement_id: str) -> None:
        self._replicas.pop(placement_id, None)
        if is_placement_id(placement_id):
            shutil.rmtree(self._workshop.folder(placement_id), ignore_errors=True)

    async def _report(self, store: EtcdStore, known: Known, forgotten: set[str]) -> None:
        statuses = {r.id: r.status.to_json() for r in self._replicas.values() if r.status is not None}
        wanted = {keys.status(self._node, placement_id): status for placement_id, status in statuses.items()}
        gone = {keys.status(self._node, placement_id): None for placement_id in forgotten}
        puts = {**{k: v for k, v in wanted.items() if known.status_entries.get(k) != v}, **gone}
        if puts:
            await store.commit(puts)

    def _store_is_lost(self, error: Exception) -> None:
        if not self._store_lost:
            log.warning("%s Engines keep running; going on with what was known.", error)
        self._store_lost = True
        if isinstance(error, AnotherFleet):
            return  # a person's word changes a key, and that wakes us
        self._wake_at(asyncio.get_running_loop().time() + _STORE_AGAIN_SECONDS)

    def _told(self, matters_at_once: bool) -> None:
        if matters_at_once:
            self.changed.set()
        else:
            self._wake_at(asyncio.get_running_loop().time() + _MESSAGE_SECONDS)

    def _wake_at(self, when: float) -> None:
        """The earliest of all wishes counts; a pass that comes too early asks again."""
        if self._alarm is None or self._alarm.when() > when:
            if self._alarm is not None:
                self._alarm.cancel()
            self._alarm = asyncio.get_running_loop().call_at(when, self._ring)

    def _ring(self) -> None:
        self._alarm = None
        self.changed.set()


def _known(fleet: Snapshot, node: str, status_entries: Mapping[str, bytes]) -> Known:
    ours, prefix = keys.placement(node, ""), keys.status(node, "")
    good = tuple(p for p in fleet.placements if p.node == node and is_placement_id(p.id))
    unreadable = {key.removeprefix(ours) for key in fleet.unreadable if key.startswith(ours)}
    unreadable |= {p.id for p in fleet.placements} - {p.id for p in good}
    for key in fleet.unreadable:
        log.warning("%s cannot be understood and is left as it is: %s", key, fleet.unreadable[key])
    return Known(
        wanted=Wanted(good, frozenset(unreadable), frozenset(key.removeprefix(prefix) for key in status_entries)),
        statuses={status.id: status for status in fleet.statuses},
        status_entries=status_entries,
    )
