"""Row 41: an agent does not reach its engine, which answers everybody else. A proxy lies on the socket between them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deepinfer.agent.launching import Mark, socket_path
from deepinfer.fleet import places
from tests.faults.fault_fleet import FaultFleet, stopped
from tests.faults.invariants import standing
from tests.fleet import eventually

PROXY = """
import asyncio, sys
async def pump(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
    writer.close()
async def accept(reader, writer):
    behind_reader, behind_writer = await asyncio.open_unix_connection(sys.argv[2])
    print("through", flush=True)
    await asyncio.gather(pump(reader, behind_writer), pump(behind_reader, writer))
async def main():
    server = await asyncio.start_unix_server(accept, sys.argv[1])
    print("up", flush=True)
    await server.serve_forever()
asyncio.run(main())
"""


@contextmanager
def proxied(fleet: FaultFleet) -> Iterator[subprocess.Popen[bytes]]:
    """The agent of node-1 reaches the engine of "chat" through this process; stopped, it swallows everything."""
    (placement,) = fleet.now().placements
    fleet.kill_worker()
    instance = (fleet.home / "deepinfer/nodes/node-1/instance").read_text().strip()
    path = socket_path(places.runtime_dir(), Mark(placement.id, placement.epoch, instance))
    behind = path.rename(path.with_suffix(".behind"))
    with subprocess.Popen([sys.executable, "-c", PROXY, str(path), str(behind)], stdout=subprocess.PIPE) as proxy:
        try:
            assert proxy.stdout is not None and proxy.stdout.readline() == b"up\n"
            fleet.start_worker()
            assert proxy.stdout.readline() == b"through\n"
            yield proxy
        finally:
            os.kill(proxy.pid, signal.SIGCONT)
            proxy.kill()
            if behind.exists():
                behind.replace(path)


@pytest.mark.faults
def test_row_41_an_engine_that_only_its_agent_does_not_reach_is_given_time(tmp_path: Path) -> None:
    """Two questions without an answer are none; three are a hang, and it is replaced."""
    with FaultFleet(tmp_path).running() as fleet:
        fleet.simulate()
        with proxied(fleet) as proxy:
            with standing(fleet) as traffic, stopped(proxy.pid):
                traffic.goes_on(6)
            assert not traffic.tally.tried_again
            with standing(fleet, breaks="chat"):
                os.kill(proxy.pid, signal.SIGSTOP)
                eventually(lambda: "It did not answer for" in fleet.replicas("chat")[0]["message"], 15)
                proxy.kill()
