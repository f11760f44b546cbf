"""How large the fleet is and how long each phase lasts."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.fleet.simulated_node import DEVICES

DEPLOYMENTS = 50
SINGLES = 10
"""Of them have one replica: a change of their spec is one changed placement."""


@dataclass(frozen=True)
class Size:
    """Given on the command line."""

    nodes: int
    replicas: int
    changes: int
    steady_seconds: float
    outage_seconds: float
    lease_seconds: int
    processes: int
    clients: int

    def nodes_of(self, part: int) -> range:
        """The numbers of the nodes that one process holds."""
        return range(part * self.nodes // self.processes, (part + 1) * self.nodes // self.processes)

    def deployments(self) -> Iterator[tuple[str, int]]:
        """Names and replicas, as even as they can be."""
        yield from ((single(number), 1) for number in range(SINGLES))
        large, rest = DEPLOYMENTS - SINGLES, self.replicas - SINGLES
        yield from ((many(number), rest // large + (number < rest % large)) for number in range(large))


def single(number: int) -> str:
    return f"single-{number % SINGLES:02}"


def many(number: int) -> str:
    return f"many-{number % (DEPLOYMENTS - SINGLES):02}"


def size_given() -> Size:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fleet",
        description="Measure the control plane with simulated nodes on one real etcd.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--nodes", type=int, default=1000, help=f"each has {DEVICES} simulated devices")
    parser.add_argument("--replicas", type=int, default=5000, help=f"of {DEPLOYMENTS} deployments; one device each")
    parser.add_argument("--changes", type=int, default=200, help="single changes, one after the other")
    parser.add_argument("--steady-seconds", type=float, default=30, help="how long nothing changes")
    parser.add_argument("--outage-seconds", type=float, default=3, help="how long etcd is away")
    parser.add_argument("--lease-seconds", type=int, default=10, help="of each node")
    parser.add_argument("--processes", type=int, default=2, help="that hold the nodes")
    parser.add_argument("--clients", type=int, default=20, help="connections to etcd that the nodes share")
    size = Size(**vars(parser.parse_args()))
    if size.replicas < DEPLOYMENTS:
        parser.error(f"--replicas must be at least {DEPLOYMENTS}: one for each deployment")
    if size.replicas + size.changes > size.nodes * DEVICES:
        parser.error(f"{size.nodes} nodes have no room for {size.replicas} replicas and {size.changes} more")
    return size
