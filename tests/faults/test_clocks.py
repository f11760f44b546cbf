"""Row 61: the clock of one node jumps an hour ahead and an hour back, while its agent and its engines run.

What an agent reads of time is what jumps here: libfaketime sets the wall clock of its process, and its /proc/stat tells
the time of the boot as the kernel would after such a jump. The monotonic clock goes on, as it does.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.fault_fleet import FaultFleet
from tests.faults.invariants import standing
from tests.fleet import eventually
from tests.stepped_clock import own_mounts, stat_after_step

HOUR = 3600


class Clock:
    """Of the processes that are started with `variables`, in a mount namespace of their own."""

    def __init__(self, home: Path) -> None:
        self._file = home / "clock"
        self._stat = home / "stat"
        self._library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
        self._set(0)

    @property
    def variables(self) -> dict[str, str]:
        return {
            "LD_PRELOAD": str(self._library),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def jumps(self, seconds: int, pid: int) -> None:
        """So far from the true time, for this process and those that it starts."""
        self._set(seconds)
        inside = ["nsenter", f"--target={pid}", "--mount", "mount", "--bind", str(self._stat), "/proc/stat"]
        subprocess.run(inside, check=True)

    def _set(self, seconds: int) -> None:
        self._file.write_text(f"{seconds:+d}s\n")
        self._stat.write_text(stat_after_step(seconds))


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[FaultFleet]:
    with FaultFleet(tmp_path).running() as fleet:
        yield fleet


@pytest.mark.faults
@pytest.mark.parametrize("jump", [HOUR, -HOUR])
def test_row_61_a_clock_that_jumps_ends_nothing(fleet: FaultFleet, jump: int) -> None:
    clock = Clock(fleet.home)
    fleet.start_worker("node-2", more=clock.variables, preexec_fn=own_mounts)
    fleet.simulate(replicas=2)
    fleet.simulate("doomed", replicas=2)
    doomed = pid_on(fleet, "doomed", "node-2")
    assert doomed is not None
    agent = fleet.workers["node-2"].pid
    log = fleet.home / "node-2.log"
    with standing(fleet, breaks="doomed") as traffic:
        clock.jumps(jump, agent)
        traffic.goes_on(3)  # more than a lease
        told = time.strftime("%Y-%m-%d %H", time.localtime(time.time() + jump))
        os.kill(doomed, signal.SIGKILL)  # what it does of an engine's end it does as before
        eventually(lambda: pid_on(fleet, "doomed", "node-2") not in (None, doomed), 20)
        fleet.routed_everywhere("doomed")
        assert told in log.read_text(), "the agent did not see the jump"
        fleet.delete("doomed")


def pid_on(fleet: FaultFleet, deployment: str, node: str) -> int | None:
    """Of the engine that its agent last told of."""
    pid: int | None = next(r["pid"] for r in fleet.replicas(deployment) if r["node"] == node)
    return pid
