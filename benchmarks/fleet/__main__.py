"""A fleet of 1,000 simulated nodes and 5,000 replicas on one real etcd: `python -m benchmarks.fleet`.

etcd and `serve` are the product's own processes, and so is all of an agent but its engines (`simulated_node.py`), many
agents to a process. All share this machine's cores, where a fleet's nodes have their own, so each figure is an upper
bound. The router is not measured: simulated replicas have no endpoint.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import tempfile
from pathlib import Path

import httpx

from benchmarks.fleet.bench import Bench
from benchmarks.fleet.figures import told
from benchmarks.fleet.floor import bare_etcd_seconds
from benchmarks.fleet.ledger import Ledger
from benchmarks.fleet.outage import reconnect
from benchmarks.fleet.phases import change, place, register, rest
from benchmarks.fleet.processes import running
from benchmarks.fleet.sightings import Sightings
from benchmarks.fleet.size import Size, size_given
from benchmarks.fleet.until import say
from deepinfer.fleet.entry import run_process
from tests.etcd_process import EtcdProcess

_API_SECONDS = 300.0


async def measure(size: Size, home: Path) -> str:
    """Its figures, in one line."""
    etcd = EtcdProcess(home, fsync=True)
    etcd.start()
    try:
        ledger, sightings = Ledger(etcd.endpoint), Sightings()
        following = asyncio.create_task(ledger.follow())
        await ledger.watching.wait()
        async with (
            running(size, home, etcd, sightings) as processes,
            httpx.AsyncClient(base_url=processes.url, timeout=_API_SECONDS) as api,
        ):
            bench = Bench(size, processes, ledger, sightings, api)
            await register(bench)
            placing = await place(bench)
            writes = list(ledger.writes)
            found = placing, await change(bench), await rest(bench), await reconnect(bench)
        following.cancel()
    finally:
        etcd.kill()
    ratio = placing.ready_seconds / await bare_etcd_seconds(writes, Path(tempfile.mkdtemp(dir=home)))
    return f"bench-fleet nodes={size.nodes} replicas={size.replicas} {told(*found)} etcd_floor_ratio={ratio:.1f}"


async def run(size: Size) -> None:
    for name in ("deepinfer", "httpx"):
        logging.getLogger(name).setLevel(logging.ERROR)  # a watch that breaks is part of the plan
    say(
        "The router is not measured: simulated replicas have no endpoint. Nodes share this machine with serve and etcd."
    )
    with tempfile.TemporaryDirectory(prefix="deepinfer-fleet-") as home:
        print(await measure(size, Path(home)))


if __name__ == "__main__":
    asked = size_given()
    sys.exit(run_process(lambda: run(asked)))
