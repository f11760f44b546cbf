"""One pass of the scheduler: read the fleet, plan, write what differs. Only a leader calls it."""

from __future__ import annotations

import logging

from deepinfer.control_plane.scheduler.changes import changes_between
from deepinfer.control_plane.scheduler.plan import plan
from deepinfer.fleet import keys
from deepinfer.fleet.leadership import Leadership
from deepinfer.fleet.snapshot import snapshot_of
from deepinfer.fleet.store import EtcdStore

log = logging.getLogger(__name__)

CHANGES_A_COMMIT = 60
"""Each compares its own key and the one it rests on, and etcd takes 128 compares a transaction."""


async def converge(store: EtcdStore, leadership: Leadership) -> None:
    """Raises `StoreConflict` if somebody wrote first, or if another leads by now: nothing of that commit is written."""
    reading = await store.read(keys.FLEET)
    fleet = snapshot_of(reading.values)
    changes = changes_between(fleet, plan(fleet))
    for start in range(0, len(changes), CHANGES_A_COMMIT):
        part = changes[start : start + CHANGES_A_COMMIT]
        premises = {change.rests_on: reading.mod_revision(change.rests_on) for change in part}
        await store.commit(
            {change.key: change.value for change in part},
            if_unchanged=reading,
            also_unchanged={**premises, **leadership.fence},
        )
    if changes:
        log.info("wrote %s", ", ".join(change.key.removeprefix(keys.FLEET) for change in changes[:5]))
