"""etcd is killed and comes back: how soon every node watches again, and whether anything was lost or moved by it.

A node watches again when its own watch delivers a marker: a placement that asks for nothing, written after etcd came
back, which the scheduler then removes. A lost lease shows in the node's key, which is then written anew or gone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

import psutil

from benchmarks.fleet.bench import Bench
from benchmarks.fleet.figures import Reconnecting
from benchmarks.fleet.processes import cpu_seconds
from benchmarks.fleet.simulated_node import node_name
from benchmarks.fleet.until import say, until
from deepinfer.fleet import keys
from deepinfer.fleet.resources import Intent, Placement
from deepinfer.fleet.spec import DeploymentSpec, EngineKind
from deepinfer.fleet.store import MOST_OPERATIONS, EtcdStore, Reading

_BACK_WITHIN_SECONDS = 120.0
_SAMPLE_SECONDS = 0.5
_MARKER = "marker"


async def reconnect(bench: Bench) -> Reconnecting:
    """kill -9, a while of nothing, and all nodes at once."""
    await bench.settled()
    etcd, size = bench.processes.etcd, bench.size
    async with EtcdStore.connect([etcd.endpoint]) as store:
        nodes, placements = await store.read(keys.NODES), await store.read(keys.PLACEMENTS)
    spent = bench.processes.nodes_cpu()
    etcd.kill()
    say(f"killed etcd, for {size.outage_seconds:g} s")
    await asyncio.sleep(size.outage_seconds)
    began = time.monotonic()
    etcd.start()
    say(f"etcd is healthy again after {time.monotonic() - began:.1f} s")
    async with EtcdStore.connect([etcd.endpoint]) as store, asyncio.TaskGroup() as tasks:
        peak = tasks.create_task(_peak_core(psutil.Process(etcd.pid), began + size.lease_seconds))
        seconds = await _all_watch_again(bench, store, began)
        spent = bench.processes.nodes_cpu() - spent
        say(f"all nodes watch again after {seconds:.1f} s, which cost them {spent:.1f} s of CPU together")
        # A lease that nobody renews is over now: etcd's restart gave each its whole time again.
        await asyncio.sleep(max(0.0, began + size.lease_seconds + 2 - time.monotonic()))
        await bench.settled()
        lost = _different(nodes, await store.read(keys.NODES))
        moved = _different(placements, await store.read(keys.PLACEMENTS))
    say(f"lost leases: {lost}; moved placements: {moved}; etcd's peak: {peak.result():.2f} of a core")
    return Reconnecting(seconds, lost, moved, peak.result())


async def _all_watch_again(bench: Bench, store: EtcdStore, began: float) -> float:
    sightings = bench.sightings
    sightings.await_watches(await _mark([node_name(number) for number in range(bench.size.nodes)], store))
    await until(
        lambda: not sightings.awaited,
        sightings.news,
        _BACK_WITHIN_SECONDS,
        lambda: f"{len(sightings.awaited)} nodes do not watch yet",
    )
    return sightings.last_arrival - began


async def _mark(nodes: list[str], store: EtcdStore) -> Mapping[str, int]:
    """Node -> the revision its watch must come to."""
    revisions: dict[str, int] = {}
    for start in range(0, len(nodes), MOST_OPERATIONS):
        part = nodes[start : start + MOST_OPERATIONS]
        puts = {keys.placement(node, _MARKER): _marker(node).to_json() for node in part}
        revisions |= dict.fromkeys(part, await store.commit(puts))
    return revisions


def _marker(node: str) -> Placement:
    return Placement(
        id=_MARKER,
        epoch=1,
        deployment=_MARKER,
        generation=1,
        replica=0,
        node=node,
        devices=(),
        intent=Intent.DRAIN,
        spec=DeploymentSpec(model=_MARKER, engine=EngineKind.SIM),
    )


def _different(before: Reading, after: Reading) -> int:
    """Keys that were written, made or removed in between."""
    touched = before.entries.keys() | after.entries.keys()
    return sum(
        before.mod_revision(key) != after.mod_revision(key) for key in touched if not key.endswith(f"/{_MARKER}")
    )


async def _peak_core(process: psutil.Process, deadline: float) -> float:
    """The most of a core it used in any half second."""
    peak, spent, at = 0.0, 0.0, process.create_time()
    while time.monotonic() < deadline:
        now, wall = cpu_seconds(process), time.time()
        peak, spent, at = max(peak, (now - spent) / max(wall - at, 0.1)), now, wall
        await asyncio.sleep(_SAMPLE_SECONDS)
    return peak
