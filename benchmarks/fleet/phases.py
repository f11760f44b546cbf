"""The phases of a run whose store stays up: everything placed, single changes, and nothing at all."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.fleet.bench import Bench
from benchmarks.fleet.figures import Changing, Placing, Steady, percentile
from benchmarks.fleet.size import many, single
from benchmarks.fleet.until import say, until

_REGISTERED_WITHIN_SECONDS = 120.0
_SEEN_WITHIN_SECONDS = 60.0
_PACE_SECONDS = 0.2  # between two changes at least


async def register(bench: Bench) -> None:
    """All nodes have their keys, and watch their placements."""
    registered = bench.sightings.registered
    began = time.monotonic()
    done = await until(
        lambda: len(registered) >= bench.size.nodes,
        bench.sightings.news,
        _REGISTERED_WITHIN_SECONDS,
        lambda: f"{len(registered)} nodes registered",
    )
    say(f"{bench.size.nodes} nodes registered within {done - began:.1f} s")


async def place(bench: Bench) -> Placing:
    """All deployments at once, on a fleet that runs nothing."""
    bench.ledger.writes.clear()
    cpu = bench.processes.serve_cpu(), bench.processes.etcd_cpu(), bench.processes.nodes_cpu()
    began = time.monotonic()
    async with asyncio.TaskGroup() as tasks:
        for name, replicas in bench.size.deployments():
            tasks.create_task(bench.deploy(name, replicas))
        placed = await bench.all_placed(bench.size.replicas) - began
        say(f"{bench.size.replicas} replicas placed after {placed:.1f} s")
    ready = await bench.all_ready(bench.size.replicas) - began
    now = bench.processes.serve_cpu(), bench.processes.etcd_cpu(), bench.processes.nodes_cpu()
    serve, etcd, nodes = (after - before for before, after in zip(cpu, now, strict=True))
    say(f"all ready after {ready:.1f} s; CPU seconds: serve {serve:.1f}, etcd {etcd:.1f}, nodes {nodes:.1f}")
    return Placing(placed, ready)


async def change(bench: Bench) -> Changing:
    """One after the other: a spec that starts its only replica anew, then a replica more of a large deployment."""
    seconds = []
    for number, (name, changes) in enumerate(_changes(bench)):
        took = await _seconds_until_seen(bench, name, changes)
        seconds.append(took)
        if number % 20 == 19:
            say(f"  {number + 1} changes, median {percentile(seconds, 0.5) * 1000:.0f} ms")
        await asyncio.sleep(max(0.0, _PACE_SECONDS - took))
    found = Changing(percentile(seconds, 0.5) * 1000, percentile(seconds, 0.99) * 1000)
    say(f"a change is read by its agent within {found.change_p50_ms:.0f} ms, p99 {found.change_p99_ms:.0f} ms")
    return found


def _changes(bench: Bench) -> Iterator[tuple[str, dict[str, Any]]]:
    replicas = dict(bench.size.deployments())
    for number in range(bench.size.changes):
        if number % 2 == 0:
            yield single(number // 2), {"max_model_len": 1024 + number}
        else:
            name = many(number // 2)
            replicas[name] += 1
            yield name, {"replicas": replicas[name]}


async def _seconds_until_seen(bench: Bench, name: str, changes: dict[str, Any]) -> float:
    bench.generations[name] += 1
    expected = name, bench.generations[name]
    seen = bench.sightings.first_seen
    sent = time.monotonic()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(bench.amend(name, changes))
        await until(
            lambda: expected in seen,
            bench.sightings.news,
            _SEEN_WITHIN_SECONDS,
            lambda: f"no agent has read generation {expected[1]} of {name}",
        )
    return seen[expected] - sent


async def rest(bench: Bench) -> Steady:
    """Nothing changes; leases are renewed, and everybody looks around as always."""
    await bench.settled()
    writes, processes = len(bench.ledger.writes), bench.processes
    before = processes.serve_cpu(), processes.etcd_cpu(), processes.nodes_cpu()
    began = time.monotonic()
    await asyncio.sleep(bench.size.steady_seconds)
    after = processes.serve_cpu(), processes.etcd_cpu(), processes.nodes_cpu()
    seconds = time.monotonic() - began
    serve, etcd, nodes = ((end - start) / seconds for start, end in zip(before, after, strict=True))
    say(f"steady: of a core, serve {serve:.1%}, etcd {etcd:.1%}, all nodes together {nodes:.1%}")
    if len(bench.ledger.writes) > writes:
        say(f"  although nothing changes, {len(bench.ledger.writes) - writes} keys were written")
    return Steady(serve, etcd)
