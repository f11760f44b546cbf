"""`make bench-fleet` in small: every phase ends, and an etcd that is killed costs no lease and moves nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
# A lease must outlast an etcd that starts slowly: what is left of it when etcd goes is three quarters at least.
ARGUMENTS = "--nodes 20 --replicas 60 --changes 4 --steady-seconds 1 --outage-seconds 0.5 --lease-seconds 6"


def test_a_small_fleet_goes_through_every_phase() -> None:
    command = [sys.executable, "-m", "benchmarks.fleet", *ARGUMENTS.split()]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr
    name, *pairs = run.stdout.splitlines()[-1].split()
    figures = {key: float(value) for key, _, value in (pair.partition("=") for pair in pairs)}
    assert name == "bench-fleet"
    assert (figures["nodes"], figures["replicas"]) == (20, 60)
    assert 0 < figures["placed_seconds"] < figures["ready_seconds"]
    assert 0 < figures["change_p50_ms"] <= figures["change_p99_ms"]
    assert figures["reconnect_seconds"] > 0 and figures["etcd_floor_ratio"] > 1
    assert (figures["lost_leases"], figures["moved"]) == (0, 0)
