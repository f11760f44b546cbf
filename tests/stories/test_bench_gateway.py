"""`make bench-gateway` and `make bench-streams` in small: the real `serve` answers, and every figure is there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def test_gateways_are_measured() -> None:
    lines = ran("benchmarks.gateway", "--peers none --rounds 1 --seconds 0.2")
    assert figures(lines[-1], "bench-gateway").keys() == {"cpu_request", "cpu_chunk", "first_byte", "p99"}
    head, ours = lines[0], next(line for line in lines if line.startswith("deepinfer "))
    for column in ("req/s", "CPU us/request", "chunks/s", "CPU us/chunk", "memory MB"):
        assert column in head
    *costs, failed, memory = ours.split()[1:]
    assert "-" not in costs and failed == "-" and int(memory) > 10


def test_slow_streams_are_held() -> None:
    lines = ran("benchmarks.gateway.streams", "--streams 40 --seconds 0.5 --pace-ms 100")
    told = figures(lines[-1], "bench-streams")
    assert told.keys() == {"kb_per_stream", "longest_gap_seconds", "hangup_seconds"}
    assert told["longest_gap_seconds"] > 0.09 and told["hangup_seconds"] > 0


def ran(module: str, arguments: str) -> list[str]:
    command = [sys.executable, "-m", module, *arguments.split()]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr + run.stdout
    return run.stdout.splitlines()


def figures(line: str, name: str) -> dict[str, float]:
    first, *pairs = line.split()
    assert first == name
    return {key: float(value) for key, _, value in (pair.partition("=") for pair in pairs)}
