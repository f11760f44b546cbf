"""Errands are children of a process whose gRPC is busy, and live."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ERRANDS = 200  # without the setting in `deepinfer/__init__.py` two or three in a hundred crash
START = "import deepinfer, runpy; runpy.run_module('tests.busy_grpc_parent', run_name='__main__')"


def test_no_child_dies_because_its_parent_speaks_grpc() -> None:
    root = Path(__file__).parents[2]
    ended = subprocess.run(
        [sys.executable, "-c", START, str(ERRANDS)], cwd=root, stdout=subprocess.PIPE, timeout=120, check=True
    )
    assert json.loads(ended.stdout) == [0] * ERRANDS
