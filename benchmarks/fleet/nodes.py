"""A process full of simulated nodes: `python -m benchmarks.fleet.nodes`. It ends by a signal.

Its nodes share `--clients` connections to etcd; real ones have a connection each, which costs etcd memory and no more
work.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from contextlib import AsyncExitStack
from pathlib import Path

from benchmarks.fleet.simulated_node import SimulatedAgent, TellingStore, simulated_node
from deepinfer.agent.containers.daemon import Daemon
from deepinfer.agent.main import follow_the_fleet
from deepinfer.agent.node_record import NodeRecord
from deepinfer.fleet.config import Config, EtcdConfig, WorkerConfig
from deepinfer.fleet.entry import run_process


async def run(numbers: range, config: Config, folder: Path, clients: int) -> None:
    """Never returns."""
    logging.getLogger("deepinfer.etcd").setLevel(logging.ERROR)  # hundreds of broken watches are part of the plan
    daemon = Daemon(os.environ, "0" * 16)  # nobody asks it: these nodes have no Docker
    async with AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(TellingStore.connect(config.etcd.addresses)) for _ in range(clients)]
        async with asyncio.TaskGroup() as lives, asyncio.TaskGroup() as nodes:
            for number in numbers:
                record = NodeRecord(simulated_node(number), folder, daemon)
                agent = SimulatedAgent(record.node.name, config.worker, folder)
                nodes.create_task(follow_the_fleet(stores[number % clients], record, agent, config, lives))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fleet.nodes", description=__doc__)
    parser.add_argument("--etcd", required=True, metavar="HOST:PORT")
    parser.add_argument("--first", type=int, required=True, help="the first node's number")
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--clients", type=int, required=True)
    parser.add_argument("--lease-seconds", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    given = parser.parse_args()
    config = Config(etcd=EtcdConfig(endpoints=(given.etcd,)), worker=WorkerConfig(lease_seconds=given.lease_seconds))
    numbers = range(given.first, given.first + given.count)
    return run_process(lambda: run(numbers, config, given.folder, given.clients))


if __name__ == "__main__":
    sys.exit(main())
