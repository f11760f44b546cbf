"""One pass of the agent: read what is wanted here, look at what runs, act on the difference, report.

Level-triggered, and it goes on without the store: then the placements read last are still made so, and what there is
to report waits.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Callable, Mapping
from contextlib import aclosing
from pathlib import Path

from deepinfer.agent.engine_folders import is_placement_id
from deepinfer.agent.launching import Launcher, Mark
from deepinfer.agent.own_keys import OwnKeys
from deepinfer.agent.plan import Forget, Hold, Situation, Stage, Start, Stop, Wait, plan
from deepinfer.agent.replica import Replica
from deepinfer.agent.workshop import ModelFiles, Workshop
from deepinfer.fleet.config import WorkerConfig
from deepinfer.fleet.errors import AnotherFleet, StoreRefused, StoreUnavailable
from deepinfer.fleet.resources import Intent
from deepinfer.fleet.spec import Backend
from deepinfer.fleet.store import EtcdStore

_MESSAGE_SECONDS = 1.0  # progress messages reach the store this often at most
_STORE_AGAIN_SECONDS = 2.0

log = logging.getLogger(__name__)


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
        own_keys: OwnKeys,
    ) -> None:
        self.changed = asyncio.Event()
        self.passed = asyncio.Event()  # set after every pass
        self._own = own_keys
        self._workshop = Workshop(node, config, engines, launchers, model_files, self._in_charge, self._told)
        self._replicas: dict[str, Replica] = {}
        self._closed: tuple[str, ...] = ()
        self._unseen = frozenset(launchers)  # not adopted from yet
        self._store_lost = False
        self._alarm: asyncio.TimerHandle | None = None

    @property
    def holds(self) -> tuple[str, ...]:
        """Every placement that is to serve here, or of which something is still here."""
        wanted = self._own.known.wanted.placements if self._own.known else ()
        return tuple(sorted({p.id for p in wanted if p.intent is Intent.SERVE} | self._replicas.keys()))

    def close(self, reasons: tuple[str, ...]) -> None:
        """Start nothing new, for these reasons; without any: again."""
        self._closed = reasons
        self.changed.set()

    async def adopt(self, backend: Backend, tasks: asyncio.TaskGroup) -> None:
        """Take over what an earlier agent left: whole engines are kept, remains of broken ones are ended.

        Before that nothing is started there.
        """
        running = await self._workshop.launchers[backend].running()
        for engine in sorted(running, key=lambda engine: -engine.mark.epoch):  # the newest first
            placement_id = engine.mark.placement
            known = self._replicas.get(placement_id)
            if engine.is_whole and (known is None or known.seen.stage is Stage.ABSENT):
                log.info("adopted %s (epoch %d), process %d", placement_id, engine.mark.epoch, engine.pid)
                self._replicas[placement_id] = Replica(placement_id, self._workshop, inherits=True)
                self._replicas[placement_id].adopt(engine, tasks)
            else:
                log.warning("ending what an earlier run left of %s (process %d)", engine.mark, engine.pid)
                await engine.kill()
        self._unseen -= {backend}
        self.changed.set()

    async def follow(self, store: EtcdStore, prefix: str) -> None:
        """Look again whenever something changed there. Never returns."""

        def doubt_a_break(is_connected: bool) -> None:
            if not is_connected:
                self._own.doubt()

        async with aclosing(store.changes(prefix, doubt_a_break)) as changes:
            async for _ in changes:
                self._own.doubt()
                self.changed.set()

    async def converge(self, store: EtcdStore, tasks: asyncio.TaskGroup) -> None:
        """One pass. Without the store it acts on the last reading, and looks again soon."""
        await self._pass(store, tasks)
        self.passed.set()

    async def _pass(self, store: EtcdStore, tasks: asyncio.TaskGroup) -> None:
        try:
            await self._own.read(store)
        except (StoreUnavailable, StoreRefused, AnotherFleet) as error:
            self._store_is_lost(error)
            self._own.recall()
            self._act(tasks)
            return
        forgotten = self._act(tasks)
        try:
            await self._report(store, forgotten)
        except (StoreUnavailable, StoreRefused, AnotherFleet) as error:
            self._store_is_lost(error)
        else:
            self._store_lost = False

    def converge_alone(self, tasks: asyncio.TaskGroup) -> None:
        """One pass while there is no store at all."""
        self._own.recall()
        self._act(tasks)
        self.passed.set()

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
        await self._report(store, set())

    async def _hurry_all(self, hurry: asyncio.Event) -> None:
        await hurry.wait()
        for replica in self._replicas.values():
            replica.stop(hurry=True)

    def _act(self, tasks: asyncio.TaskGroup) -> set[str]:
        """Start, stop and forget; answers the ids that are to have no status any more."""
        loop = asyncio.get_running_loop()
        self._remember_counts()
        seen = {placement_id: replica.seen for placement_id, replica in self._replicas.items()}
        wanted = self._own.known.wanted if self._own.known else None
        forgotten = set()
        self._hand_out_layouts()
        for action in plan(Situation(loop.time(), wanted, seen, self._closed, self._unseen)):
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

    def _hand_out_layouts(self) -> None:
        """To their heads, and to who must know that another one is."""
        for layout in self._own.known.layouts if self._own.known else ():
            for placement_id, epoch in {(layout.id, layout.epoch), (layout.head, layout.head_epoch)}:
                replica = self._replicas.get(placement_id)
                if replica is not None and replica.seen.epoch == epoch:
                    replica.pipeline.arrange(layout)

    def _replica(self, placement_id: str) -> Replica:
        if placement_id not in self._replicas:
            known = self._own.known
            last = known.statuses.get(placement_id) if known else None
            inherits = known is not None and known.wanted.is_recalled
            self._replicas[placement_id] = Replica(placement_id, self._workshop, last, inherits=inherits)
        return self._replicas[placement_id]

    def _in_charge(self) -> frozenset[Mark]:
        return frozenset(replica.mark for replica in self._replicas.values() if replica.mark is not None)

    def _remember_counts(self) -> None:
        if self._own.known is not None and not self._own.known.wanted.is_recalled:
            for placement_id, replica in self._replicas.items():
                replica.remember(self._own.known.statuses.get(placement_id))

    def _forget(self, placement_id: str) -> None:
        self._replicas.pop(placement_id, None)
        if is_placement_id(placement_id):
            shutil.rmtree(self._workshop.folder(placement_id), ignore_errors=True)

    async def _report(self, store: EtcdStore, forgotten: set[str]) -> None:
        await self._own.tell(store, [r.status for r in self._replicas.values() if r.status is not None], forgotten)

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
