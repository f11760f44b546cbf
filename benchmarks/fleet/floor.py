"""The same writes on a bare etcd: no scheduler, no agents, one loop.

Nobody publishes a comparable figure that could be run here, and absolute times are those of this machine's disk and
cores, so what is compared is how much longer the fleet takes than etcd alone takes for the very same keys and values.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.fleet.until import say
from deepinfer.etcd.client import Client, Transaction
from deepinfer.fleet import keys
from tests.etcd_process import EtcdProcess

_AT_ONCE = 64  # as many nodes write at the same time
_PLACEMENTS_A_COMMIT = 60  # as the scheduler does

Write = tuple[bytes, bytes]


async def bare_etcd_seconds(writes: Sequence[Write], folder: Path) -> float:
    """Placements in the scheduler's batches, everything else one by one."""
    etcd = EtcdProcess(folder, fsync=True)
    etcd.start()
    try:
        async with Client([etcd.endpoint], timeout=30.0) as client:
            left = _transactions(writes)
            began = time.monotonic()
            async with asyncio.TaskGroup() as tasks:
                for _ in range(_AT_ONCE):
                    tasks.create_task(_write(client, left))
            seconds = time.monotonic() - began
    finally:
        etcd.kill()
    say(f"a bare etcd takes {seconds:.1f} s for the same {len(writes)} writes")
    return seconds


async def _write(client: Client, left: Iterator[Transaction]) -> None:
    for transaction in left:
        await client.transact(transaction)


def _transactions(writes: Sequence[Write]) -> Iterator[Transaction]:
    """In order, each key once at most in one."""
    placements: dict[bytes, bytes] = {}
    for key, value in writes:
        if key.startswith(keys.PLACEMENTS.encode()):
            placements[key] = value
        else:
            yield Transaction(unchanged=(), puts=[(key, value)])
        if len(placements) == _PLACEMENTS_A_COMMIT:
            yield Transaction(unchanged=(), puts=list(placements.items()))
            placements = {}
    if placements:
        yield Transaction(unchanged=(), puts=list(placements.items()))
