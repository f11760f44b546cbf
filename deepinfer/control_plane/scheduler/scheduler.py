"""One pass of the scheduler: look at the fleet, decide, write what differs, tell it. Only a leader makes one."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from deepinfer.control_plane.scheduler.changes import Change, keys_of
from deepinfer.control_plane.scheduler.decision import Circumstances, Memory, decided
from deepinfer.control_plane.scheduler.event_log import EventLog
from deepinfer.fleet.leadership import Leadership
from deepinfer.fleet.reading import Reading
from deepinfer.fleet.snapshot import ViewedStore
from deepinfer.fleet.told_time import told_time

log = logging.getLogger(__name__)

CHANGES_A_COMMIT = 60
"""Each compares its own key and the one it rests on, and etcd takes 128 compares a transaction."""


def never_looked() -> frozenset[tuple[str, int]] | None:
    """For a control plane without a gateway of its own."""
    return None


@dataclass(frozen=True)
class Surroundings:
    """What the scheduler has besides the store. `answering`: (id, epoch) of the engines that answer its gateway."""

    answering: Callable[[], frozenset[tuple[str, int]] | None] = never_looked
    node_grace_seconds: float = 60.0
    events: EventLog | None = None


class Scheduler:
    """Of one leadership. `due`: when, by the loop's clock, a pass is due although nothing changed."""

    def __init__(
        self,
        store: ViewedStore,
        leadership: Leadership,
        surroundings: Surroundings = Surroundings(),  # a frozen value
    ) -> None:
        self.due = math.inf
        self._store = store
        self._leadership = leadership
        self._surroundings = surroundings
        self._memory = Memory()

    async def converge(self) -> None:
        """Raises `StoreConflict` if somebody wrote first or another leads by now: nothing of that commit is written.

        It decides in a thread: for thousands of replicas that takes a while, in which requests are relayed and leases
        renewed.
        """
        reading, fleet = await self._store.view()
        decision = await asyncio.to_thread(decided, fleet, self._memory, self._circumstances())
        await self._commit(decision.changes, reading)
        if decision.memory.attendance.brake and not self._memory.attendance.brake:
            log.warning("%s", decision.memory.attendance.brake)
        self._memory, self.due = decision.memory, decision.due
        if self._surroundings.events is not None:
            await self._surroundings.events.write(decision.happened)

    def _circumstances(self) -> Circumstances:
        return Circumstances(
            now=asyncio.get_running_loop().time(),
            told_at=told_time(),
            answering=self._surroundings.answering(),
            node_grace_seconds=self._surroundings.node_grace_seconds,
        )

    async def _commit(self, changes: Sequence[Change], reading: Reading) -> None:
        for start in range(0, len(changes), CHANGES_A_COMMIT):
            part = changes[start : start + CHANGES_A_COMMIT]
            premises = {change.rests_on: reading.mod_revision(change.rests_on) for change in part}
            await self._store.commit(
                {change.key: change.value for change in part},
                if_unchanged=reading,
                also_unchanged={**premises, **self._leadership.fence},
            )
        if changes:
            log.info("wrote %s", keys_of([change.key for change in changes]))
